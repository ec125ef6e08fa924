"""Classification metrics: shares between 0 and 1.

Equal scores are ranked by the lower class. A split may lack classes: means over classes are over those
that occur among its labels.

AUROC and average precision are scikit-learn's. Wilson's interval and McNemar's test are our own: they are
a few lines, exact in integers of any size, and SciPy's `binomtest`, which could give both, checks them in
the tests.
"""

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics as sklearn_metrics

from fgvc_jax.errors import UserError


def classification(
    logits_NC: ArrayLike, labels_N: ArrayLike, num_classes: int
) -> dict[str, float | None]:
    """Metrics of class scores.

    Args:
      logits_NC: unnormalised log-probabilities, any float dtype; -inf rules a class out.
      labels_N: int, 0..num_classes-1.
      num_classes: C.

    Returns:
      dict of float: `top1` with its 95 % Wilson interval `top1_low`, `top1_high`; `top5`;
      `mean_class_accuracy` and `macro_f1`, means over the classes that occur in labels_N; `nll`,
      the mean negative log-likelihood in nats; and `count`, the int N.
      `top5` is None where some example has fewer than 5 classes (of C, if that is less) left to choose
      from, `nll` where the true class of some example was ruled out: neither has an honest value there.

    Raises:
      UserError: a row of scores with NaN, +inf or no finite score; a label out of range; N = 0.
    """
    logits_NC, labels_N = checked_scores(logits_NC, labels_N, num_classes)
    true_N1 = np.take_along_axis(logits_NC, labels_N[:, None], axis=1)
    lower_NC = np.arange(num_classes) < labels_N[:, None]
    place_N = ((logits_NC > true_N1) | ((logits_NC == true_N1) & lower_NC)).sum(axis=1)
    peak_N1 = logits_NC.max(axis=1, keepdims=True)
    log_sum_N1 = peak_N1 + np.log(np.exp(logits_NC - peak_N1).sum(axis=1, keepdims=True))
    counts_CC = confusion_matrix(logits_NC.argmax(axis=1), labels_N, num_classes)
    recall_C, _, f1_C = by_class(counts_CC)
    present_C = counts_CC.sum(axis=1) > 0
    low, high = wilson(int((place_N == 0).sum()), len(labels_N))
    fewest = int(np.isfinite(logits_NC).sum(axis=1).min())
    return {
        "top1": float((place_N == 0).mean()),
        "top1_low": low,
        "top1_high": high,
        "top5": float((place_N < 5).mean()) if fewest >= min(5, num_classes) else None,
        "mean_class_accuracy": float(recall_C[present_C].mean()),
        "macro_f1": float(f1_C[present_C].mean()),
        "nll": float((log_sum_N1 - true_N1).mean()) if np.isfinite(true_N1).all() else None,
        "count": len(labels_N),
    }


def wilson(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval (low, high) of a proportion; 95 % by default (Wilson 1927)."""
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return float(max(centre - half, 0)), float(min(centre + half, 1))


def majority(train_labels: ArrayLike, labels: ArrayLike) -> float:
    """Accuracy of always answering the commonest training class (the lowest, if several)."""
    return float((np.asarray(labels) == np.bincount(train_labels).argmax()).mean())


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> dict[str, float]:
    """Exact two-sided McNemar test of two classifiers on the same examples.

    Args:
      correct_a, correct_b: bool [N].

    Returns:
      dict: `b`, how often only a is right; `c`, how often only b is; `p`, the probability under
      equal error rates of a split at least as uneven (McNemar 1947, binomial form; 1 at b = c).
    """
    correct_a, correct_b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    b = int((correct_a & ~correct_b).sum())
    c = int((correct_b & ~correct_a).sum())
    # Integers of any size: 2 * P(X <= min(b, c)) with X ~ Binomial(b + c, 1/2), without rounding.
    term = tail = 1
    for i in range(min(b, c)):
        term = term * (b + c - i) // (i + 1)
        tail += term
    return {"b": b, "c": c, "p": min(1.0, 2 * tail / 2 ** (b + c))}


def binary(scores_N: ArrayLike, labels_N: ArrayLike, threshold: float = 0.0) -> dict[str, float]:
    """Metrics of a yes/no score, such as the same/different logit of a pair.

    Args:
      scores_N: any float dtype; above `threshold` (0 for logits) means yes.
      labels_N: 0 or 1.

    Returns:
      dict of float: `accuracy`, `f1` (of label 1; 0 where neither occurs), `auroc`,
      `average_precision` (see those functions), `positive_share`; and `count`, the int N.

    Raises:
      UserError: a score is NaN or infinite, a label is not 0 or 1, N = 0.
    """
    scores_N, labels_N = _checked_binary(scores_N, labels_N)
    answer_N = scores_N > threshold
    hits = (answer_N & labels_N).sum()
    named = answer_N.sum() + labels_N.sum()
    return {
        "accuracy": float((answer_N == labels_N).mean()),
        "f1": float(2 * hits / named) if named else 0.0,
        "auroc": auroc(scores_N, labels_N),
        "average_precision": average_precision(scores_N, labels_N),
        "positive_share": float(labels_N.mean()),
        "count": len(labels_N),
    }


def auroc(scores_N: ArrayLike, labels_N: ArrayLike) -> float:
    """Area under the ROC curve: P(score of a positive > of a negative), ties counting half.

    NaN where only one of the two labels occurs.
    """
    scores_N, labels_N = _checked_binary(scores_N, labels_N)
    if labels_N.all() or not labels_N.any():
        return float("nan")
    return float(sklearn_metrics.roc_auc_score(labels_N, scores_N))


def average_precision(scores_N: ArrayLike, labels_N: ArrayLike) -> float:
    """Mean of the precision at each distinct score, weighted by the recall gained there.

    Equal scores are one step of the curve. NaN where no positive occurs.
    """
    scores_N, labels_N = _checked_binary(scores_N, labels_N)
    if not labels_N.any():
        return float("nan")
    return float(sklearn_metrics.average_precision_score(labels_N, scores_N))


def confusion_matrix(predicted_N: ArrayLike, labels_N: ArrayLike, num_classes: int) -> np.ndarray:
    """int64 [C, C]: how many of the true class (row) were given each class (column)."""
    cell_N = np.asarray(labels_N, np.int64) * num_classes + np.asarray(predicted_N)
    return np.bincount(cell_N, minlength=num_classes**2).reshape(num_classes, num_classes)


def by_class(counts_CC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Recall, precision and F1 of each class, float64 [C], from a confusion matrix int [C, C].

    Recall and precision are NaN where nothing was to divide by; F1 is 0 there.
    """
    hits_C, true_C, answered_C = counts_CC.diagonal(), counts_CC.sum(axis=1), counts_CC.sum(axis=0)
    with np.errstate(invalid="ignore"):
        recall_C, precision_C = hits_C / true_C, hits_C / answered_C
    return recall_C, precision_C, 2 * hits_C / np.maximum(true_C + answered_C, 1)


def checked_scores(
    logits_NC: ArrayLike, labels_N: ArrayLike, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The class scores as at least float64 [N, C] and their labels as int64 [N].

    Raises:
      UserError: shapes that do not fit, N = 0, a label out of range, a row with NaN, +inf or no finite score.
    """
    logits_NC = np.asarray(logits_NC)
    logits_NC = logits_NC.astype(np.promote_types(logits_NC.dtype, np.float64))
    labels_N = np.asarray(labels_N)
    if logits_NC.shape != (len(labels_N), num_classes) or not len(labels_N):
        raise UserError(
            f"Class scores of shape {logits_NC.shape} for {len(labels_N)} labels and "
            f"{num_classes} classes: expected one row of {num_classes} scores for each label, and "
            "at least one label."
        )
    bad = np.flatnonzero(~np.isfinite(logits_NC.max(axis=1)))
    if len(bad):
        raise UserError(
            f"The class scores of example {bad[0]} are NaN or infinite ({len(bad)} of "
            f"{len(labels_N)} examples): the model has diverged. Evaluate an earlier checkpoint, "
            "or train again with a lower learning rate or with gradient clipping."
        )
    bad = np.flatnonzero((labels_N < 0) | (labels_N >= num_classes))
    if len(bad):
        raise UserError(
            f"The label of example {bad[0]} is {labels_N[bad[0]]}, outside 0..{num_classes - 1} "
            f"({len(bad)} such labels). Map labels through the class table of the training split."
        )
    return logits_NC, labels_N.astype(np.int64)


def _checked_binary(scores_N: ArrayLike, labels_N: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores_N = np.asarray(scores_N, np.float64).reshape(-1)
    labels_N = np.asarray(labels_N).reshape(-1)
    if scores_N.shape != labels_N.shape or not len(labels_N):
        raise UserError(
            f"{len(scores_N)} scores for {len(labels_N)} labels: expected as many of both, and at "
            "least one."
        )
    bad = np.flatnonzero(~np.isfinite(scores_N))
    if len(bad):
        raise UserError(
            f"The score of example {bad[0]} is {scores_N[bad[0]]} ({len(bad)} of {len(scores_N)} scores "
            "are NaN or infinite): the model has diverged. Train again with a lower learning rate or "
            "with gradient clipping."
        )
    if not np.isin(labels_N, (0, 1)).all():
        raise UserError("Labels of a yes/no score must be 0 or 1.")
    return scores_N, labels_N.astype(bool)
