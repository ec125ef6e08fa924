"""Stratified, seeded splits."""

import numpy as np


def stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Holds out `fraction` of every class.

    Of a class with n examples, fraction * n (rounded, halves up) are held out, but never all: one
    at least stays. So a class with a single example stays whole.

    Args:
      labels: int [N].
      fraction: 0 <= fraction < 1.
      seed: non-negative integer.

    Returns:
      (kept, held_out): two sorted index arrays, int64, which together are 0..N-1.

    Each example draws one raw 64-bit word of the Philox generator and the smallest words of a class
    are held out: NumPy promises the raw stream for all versions, which it does not for shuffles.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), not {fraction}")
    labels = np.asarray(labels)
    words = np.random.Philox(seed).random_raw(len(labels))
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(int(fraction * len(members) + 0.5), len(members) - 1)
        held_out[members[np.argsort(words[members], kind="stable")[:count]]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
