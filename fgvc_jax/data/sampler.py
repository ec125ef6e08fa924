"""Which examples a step sees: a pure function of (seed, step), so that resuming needs no iterator state."""

import grain
import numpy as np


def shuffled(examples: int, batch: int, seed: int) -> grain.MapDataset:
    """`sampler[step]` -> int64 [batch], an endless stream of epochs, each in its own random order.

    Every batch is full: the stream of epochs is cut into batches, so one may straddle two epochs and every
    example is seen equally often.
    """
    return grain.MapDataset.range(examples).seed(seed).shuffle().repeat().batch(batch)


def in_order(examples: int, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(int64 [batch], bool [batch])]: every example once; the last batch is padded, masked."""
    batches = []
    for start in range(0, examples, batch):
        index = np.arange(start, start + batch)
        batches.append((np.where(index < examples, index, 0), index < examples))
    return batches
