"""Classification metrics in NumPy: one function a question, shares between 0 and 1.

Everywhere equal scores are ranked by the lower class. A split may lack classes: means over classes
are over those that occur among its labels.
"""

import csv

import numpy as np

from fgvc_jax.errors import UserError


def classification(logits_NC, labels_N, num_classes):
    """Metrics of class scores.

    Args:
      logits_NC: unnormalised log-probabilities, any float dtype; -inf rules a class out.
      labels_N: int, 0..num_classes-1.
      num_classes: C.

    Returns:
      dict of float: `top1` with its 95 % Wilson interval `top1_low`, `top1_high`; `top5`;
      `mean_class_accuracy` and `macro_f1`, means over the classes that occur in labels_N; `nll`,
      the mean negative log-likelihood in nats; and `count`, the int N.

    Raises:
      UserError: a row of scores with NaN, +inf or no finite score; a label out of range; N = 0.
    """
    logits_NC, labels_N = _checked(logits_NC, labels_N, num_classes)
    true_N1 = np.take_along_axis(logits_NC, labels_N[:, None], axis=1)
    lower_NC = np.arange(num_classes) < labels_N[:, None]
    place_N = ((logits_NC > true_N1) | ((logits_NC == true_N1) & lower_NC)).sum(axis=1)
    peak_N1 = logits_NC.max(axis=1, keepdims=True)
    log_sum_N1 = peak_N1 + np.log(np.exp(logits_NC - peak_N1).sum(axis=1, keepdims=True))
    counts_CC = confusion_matrix(logits_NC.argmax(axis=1), labels_N, num_classes)
    recall_C, _, f1_C = _by_class(counts_CC)
    present_C = counts_CC.sum(axis=1) > 0
    low, high = wilson(int((place_N == 0).sum()), len(labels_N))
    return {
        "top1": float((place_N == 0).mean()),
        "top1_low": low,
        "top1_high": high,
        "top5": float((place_N < 5).mean()),
        "mean_class_accuracy": float(recall_C[present_C].mean()),
        "macro_f1": float(f1_C[present_C].mean()),
        "nll": float((log_sum_N1 - true_N1).mean()),
        "count": len(labels_N),
    }


def wilson(successes, n, z=1.959963984540054):
    """Wilson score interval (low, high) of a proportion; 95 % by default (Wilson 1927)."""
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return float(max(centre - half, 0)), float(min(centre + half, 1))


def majority(train_labels, labels):
    """Accuracy of always answering the commonest training class (the lowest, if several)."""
    return float((np.asarray(labels) == np.bincount(train_labels).argmax()).mean())


def mcnemar(correct_a, correct_b):
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


def binary(scores_N, labels_N, threshold=0.0):
    """Metrics of a yes/no score, such as the same/different logit of a pair.

    Args:
      scores_N: any float dtype; above `threshold` (0 for logits) means yes.
      labels_N: 0 or 1.

    Returns:
      dict of float: `accuracy`, `f1` (of label 1; 0 where neither occurs), `auroc`,
      `average_precision` (see those functions), `positive_share`; and `count`, the int N.

    Raises:
      UserError: a score is NaN, a label is not 0 or 1, N = 0.
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


def auroc(scores_N, labels_N):
    """Area under the ROC curve: P(score of a positive > of a negative), ties counting half.

    Exact, by mid-ranks (Mann-Whitney). NaN where only one of the two labels occurs.
    """
    scores_N, labels_N = _checked_binary(scores_N, labels_N)
    positives, negatives = int(labels_N.sum()), int((~labels_N).sum())
    if not positives or not negatives:
        return float("nan")
    _, group_N, size = np.unique(scores_N, return_inverse=True, return_counts=True)
    rank_N = (np.cumsum(size) - (size - 1) / 2)[group_N]
    above = rank_N[labels_N].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def average_precision(scores_N, labels_N):
    """Mean of the precision at each distinct score, weighted by the recall gained there.

    Equal scores are one step of the curve. NaN where no positive occurs.
    """
    scores_N, labels_N = _checked_binary(scores_N, labels_N)
    if not labels_N.any():
        return float("nan")
    value, group_N = np.unique(-scores_N, return_inverse=True)
    hits = np.bincount(group_N, weights=labels_N, minlength=len(value))
    precision = np.cumsum(hits) / np.cumsum(np.bincount(group_N, minlength=len(value)))
    return float((hits * precision).sum() / hits.sum())


def confusion_matrix(predicted_N, labels_N, num_classes):
    """int64 [C, C]: how many of the true class (row) were given each class (column)."""
    cell_N = np.asarray(labels_N, np.int64) * num_classes + np.asarray(predicted_N)
    return np.bincount(cell_N, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class(logits_NC, labels_N, classes):
    """One dict for each class, in the order of `classes` (its C names).

    Keys: `class`, `count` (true), `predicted` (how often it was answered), `accuracy` (its
    recall), `precision`, `f1`, `mistaken_for` (its commonest wrong answer, '' if none) and
    `mistaken_share`. A class that does not occur has accuracy and f1 NaN; precision is NaN where
    the class was never answered.
    """
    logits_NC, labels_N = _checked(logits_NC, labels_N, len(classes))
    counts_CC = confusion_matrix(logits_NC.argmax(axis=1), labels_N, len(classes))
    recall_C, precision_C, f1_C = _by_class(counts_CC)
    wrong_CC = counts_CC * (1 - np.eye(len(classes), dtype=np.int64))
    rows = []
    for c, name in enumerate(classes):
        count, worst = int(counts_CC[c].sum()), int(wrong_CC[c].argmax())
        mistakes = int(wrong_CC[c, worst])
        rows.append(
            {
                "class": name,
                "count": count,
                "predicted": int(counts_CC[:, c].sum()),
                "accuracy": float(recall_C[c]),
                "precision": float(precision_C[c]),
                "f1": float(f1_C[c]) if count else float("nan"),
                "mistaken_for": classes[worst] if mistakes else "",
                "mistaken_share": mistakes / count if count else 0.0,
            }
        )
    return rows


def write_per_class_csv(path, rows):
    """Writes the rows of `per_class`, UTF-8 with a header; NaN becomes an empty cell."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) for key, value in row.items()})


def confusions(logits_NC, labels_N, classes, limit=20):
    """The commonest mistakes, a list of dict: `true`, `predicted`, `count`, `share` of that class.

    Most frequent first, then the larger share, then the lower class ids; at most `limit`.
    """
    logits_NC, labels_N = _checked(logits_NC, labels_N, len(classes))
    counts_CC = confusion_matrix(logits_NC.argmax(axis=1), labels_N, len(classes))
    total_C = counts_CC.sum(axis=1)
    true, predicted = np.nonzero(counts_CC * (1 - np.eye(len(classes), dtype=np.int64)))
    count = counts_CC[true, predicted]
    share = count / total_C[true]
    order = np.lexsort((predicted, true, -share, -count))[:limit]
    return [
        {
            "true": classes[true[i]],
            "predicted": classes[predicted[i]],
            "count": int(count[i]),
            "share": float(share[i]),
        }
        for i in order
    ]


def write_confusion_csv(path, logits_NC, labels_N, classes):
    """Writes the confusion matrix: a row for each true class, a column for each answer."""
    logits_NC, labels_N = _checked(logits_NC, labels_N, len(classes))
    counts_CC = confusion_matrix(logits_NC.argmax(axis=1), labels_N, len(classes))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["true \\ predicted", *classes])
        writer.writerows([name, *row] for name, row in zip(classes, counts_CC, strict=True))


def _by_class(counts_CC):
    """Recall, precision, F1 of each class; NaN where undefined (F1: 0, as it is with no hit)."""
    hits_C, true_C, answered_C = counts_CC.diagonal(), counts_CC.sum(axis=1), counts_CC.sum(axis=0)
    with np.errstate(invalid="ignore"):
        recall_C, precision_C = hits_C / true_C, hits_C / answered_C
    return recall_C, precision_C, 2 * hits_C / np.maximum(true_C + answered_C, 1)


def _cell(value):
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return value


def _checked(logits_NC, labels_N, num_classes):
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


def _checked_binary(scores_N, labels_N):
    scores_N = np.asarray(scores_N, np.float64).reshape(-1)
    labels_N = np.asarray(labels_N).reshape(-1)
    if scores_N.shape != labels_N.shape or not len(labels_N):
        raise UserError(
            f"{len(scores_N)} scores for {len(labels_N)} labels: expected as many of both, and at "
            "least one."
        )
    if np.isnan(scores_N).any():
        raise UserError(
            f"The score of example {np.flatnonzero(np.isnan(scores_N))[0]} is NaN: the model has "
            "diverged. Train again with a lower learning rate or with gradient clipping."
        )
    if not np.isin(labels_N, (0, 1)).all():
        raise UserError("Labels of a yes/no score must be 0 or 1.")
    return scores_N, labels_N.astype(bool)
