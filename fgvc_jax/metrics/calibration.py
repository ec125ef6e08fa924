"""Probabilities that mean what they say, and which answers to trust.

Reliability and the expected calibration error: Guo et al. 2017 (arXiv 1706.04599), with bins of equal width;
temperature: the same, section 4.2. Risk and coverage: Geifman & El-Yaniv 2017 (arXiv 1705.08500).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from fgvc_jax.metrics.classification import checked_scores, wilson

COLDEST, HOTTEST = 0.05, 20.0
BINS = 15  # as Guo et al.


class Threshold(NamedTuple):
    """Which answers to accept.

    Attributes:
      value: the lowest probability that is accepted; None where no answer reaches the wanted precision.
      accepted: the share of the examples that it accepts.
      precision: the share of these that are right; None where none is accepted.
      low: the lower end of its 95 % Wilson interval; None as `precision`.
    """

    value: float | None
    accepted: float
    precision: float | None
    low: float | None


def softmax(scores: ArrayLike) -> np.ndarray:
    """Over the last axis, float64; -inf rules a class out."""
    scores = np.asarray(scores, np.float64)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def temperature(scores_NC: ArrayLike, labels_N: ArrayLike) -> float:
    """T > 0 for which softmax(scores / T) has the least negative log-likelihood (Guo et al. 2017, 4.2).

    It is sought between 0.05 and 20. Where every example is right, the likelihood grows without end as T
    falls, which says nothing of how sure the answers may be: then T is at least 1.

    Args:
      scores_NC: logits, any float dtype, finite; of examples that were not trained on.
      labels_N: int, 0..C-1.

    Raises:
      UserError: as `fgvc_jax.metrics.classification.checked_scores`.
    """
    scores_NC, labels_N = checked_scores(scores_NC, labels_N, np.shape(scores_NC)[1])
    true_N = np.take_along_axis(scores_NC, labels_N[:, None], axis=1)[:, 0]

    def nll(log_t: float) -> float:
        t = np.exp(log_t)
        return float(np.mean(np.logaddexp.reduce(scores_NC / t, axis=1) - true_N / t))

    low = 1.0 if (scores_NC.argmax(axis=1) == labels_N).all() else COLDEST
    bounds = np.log(low), np.log(HOTTEST)
    best = minimize_scalar(nll, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x
    return float(np.exp(min((best, *bounds), key=nll)))  # the search leaves out the ends


def threshold(confidence_N: ArrayLike, right_N: ArrayLike, precision: float) -> Threshold:
    """The threshold that accepts the most examples of which at least this share is right.

    Args:
      confidence_N: the probability of each answer.
      right_N: bool, whether it is right.
      precision: wanted, above 0 and at most 1.
    """
    confidence_N = np.asarray(confidence_N, np.float64)
    order = np.argsort(-confidence_N, kind="stable")
    right = np.cumsum(np.asarray(right_N, bool)[order])
    count = np.arange(1, len(order) + 1)
    sorted_N = confidence_N[order]
    last = np.append(sorted_N[1:] != sorted_N[:-1], True)[: len(order)]  # equal ones go together
    good = np.flatnonzero(last & (right >= precision * count))
    if not len(good):
        return Threshold(None, 0.0, None, None)
    i = int(good[-1])
    hits, taken = int(right[i]), int(count[i])
    return Threshold(float(sorted_N[i]), taken / len(order), hits / taken, wilson(hits, taken)[0])


class Reliability(NamedTuple):
    """Of each bin of confidence, float64 [bins] where not said otherwise.

    Attributes:
      edges: [bins + 1], from 0 to 1. A bin holds its upper edge; the first one 0 too.
      count: int64, images.
      confidence, accuracy: their means; NaN in an empty bin.
      ece: the mean of |accuracy - confidence| over bins, weighted by their images.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    ece: float


def reliability(confidence_N: ArrayLike, correct_N: ArrayLike, bins: int = BINS) -> Reliability:
    """Confidence against accuracy.

    Args:
      confidence_N: the probability of the class that was answered, 0 to 1.
      correct_N: bool, whether it was right.
    """
    confidence_N = np.asarray(confidence_N, np.float64)
    correct_N = np.asarray(correct_N, np.float64)
    place_N = np.clip(np.ceil(confidence_N * bins).astype(int) - 1, 0, bins - 1)
    count, sure, right = (
        np.bincount(place_N, weights, bins) for weights in (None, confidence_N, correct_N)
    )
    with np.errstate(invalid="ignore"):
        confidence, accuracy = sure / count, right / count
    ece = float(np.abs(right - sure).sum() / len(confidence_N))
    return Reliability(np.linspace(0, 1, bins + 1), count, confidence, accuracy, ece)


def risk_coverage(
    confidence_N: ArrayLike, correct_N: ArrayLike
) -> tuple[np.ndarray, np.ndarray, float]:
    """The share of wrong answers among the most confident ones.

    Returns:
      (coverage float64 [N] = 1/N, 2/N, ..., 1; risk float64 [N] among as many; the mean of the risk, AURC).
      Images of equal confidence are taken together: each place among them has the mean number of mistakes
      that a random order would give it.
    """
    confidence_N = np.asarray(confidence_N, np.float64)
    wrong_N = 1 - np.asarray(correct_N, np.float64)
    _, group_N = np.unique(-confidence_N, return_inverse=True)
    order_N = np.argsort(group_N, kind="stable")
    share_G = np.bincount(group_N, wrong_N) / np.bincount(group_N)
    taken_N = np.arange(1, len(wrong_N) + 1)
    risk_N = np.cumsum(share_G[group_N[order_N]]) / taken_N
    return taken_N / len(wrong_N), risk_N, float(risk_N.mean())
