"""Differences between classifiers on the same images."""

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 10_000


def bootstrap(
    correct_a: ArrayLike, correct_b: ArrayLike, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, float]:
    """Accuracy of a less that of b, with a 95 % interval by the paired bootstrap (Efron 1979).

    An image counts 1, 0 or -1 in the difference, so a resample of N images is a multinomial draw of how often
    each of the three comes: the same distribution, without drawing N rows.

    Args:
      correct_a, correct_b: bool [N], of the same images.

    Returns:
      dict of float: `difference`, and `low`, `high`, the 2.5th and 97.5th percentiles of the resamples.
    """
    gain_N = np.asarray(correct_a, np.int64) - np.asarray(correct_b, np.int64)
    shares = [(gain_N == value).mean() for value in (1, -1)]
    draws = np.random.default_rng(seed).multinomial(
        len(gain_N), [*shares, max(0.0, 1 - sum(shares))], resamples
    )
    low, high = np.percentile((draws[:, 0] - draws[:, 1]) / len(gain_N), (2.5, 97.5))
    return {"difference": float(gain_N.mean()), "low": float(low), "high": float(high)}


def holm(p_values: ArrayLike) -> np.ndarray:
    """P-values float64 [M] corrected for M tests (Holm 1979): a test below alpha holds for all together."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1)
    return corrected
