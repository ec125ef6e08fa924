"""Does a probability mean what it says, and how much is gained by leaving doubtful images to a person?

Reliability and the expected calibration error: Guo et al. 2017 (arXiv 1706.04599), with bins of equal width.
Risk and coverage: Geifman & El-Yaniv 2017 (arXiv 1705.08500).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

BINS = 15  # as Guo et al.


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
