"""Equal images and images that look the same."""

import itertools
from collections.abc import Iterator

import numpy as np
from PIL import Image

# 300 photos re-encoded (JPEG quality 10), halved, cut to a third without smoothing, or set to 32 px
# are all within these; photos of different things are not (produce31: 32 bits at least).
BITS = 16  # of 128
LEVELS = 5.0  # mean difference of 8 x 8 colours, of 255
NEIGHBOURS = 8  # pairs kept an image, which bounds them where everything looks alike


def signature(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [H, W, 3] -> (hash, uint8 [16]; 8 x 8 mean colours, uint8 [192]).

    The hash is the difference hash (dHash, Krawetz 2013) in both directions: of 8 x 9 and 9 x 8 mean
    grey levels, whether each is brighter than the one before it. It must be so by more than one
    level, else compression noise would decide in plain backgrounds.
    """
    small = Image.fromarray(image).resize((72, 72), Image.Resampling.BOX)
    grey = np.asarray(small.convert("L"), np.int32)
    rows = grey.reshape(8, 9, 9, 8).sum((1, 3))
    columns = grey.reshape(9, 8, 8, 9).sum((1, 3))
    brighter = (np.diff(rows, axis=1) > 72, np.diff(columns, axis=0) > 72)  # sums of 72 pixels
    levels = np.asarray(small.resize((8, 8), Image.Resampling.BOX))
    return np.packbits(np.concatenate(brighter, axis=None)), levels.ravel()


def near_pairs(hashes: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """int64 [P, 2], i < j: the rows whose hashes differ in at most BITS and colours by at most LEVELS.

    Exact but quadratic in N: seven seconds for 100,000 images on one core. At most NEIGHBOURS pairs
    are kept for each i, the nearest.

    Args:
      hashes: uint8 [N, 16].
      levels: uint8 [N, 192].
    """
    import faiss

    if len(hashes) < 2:
        return np.zeros((0, 2), np.int64)
    index = faiss.IndexBinaryFlat(8 * hashes.shape[1])
    index.add(np.ascontiguousarray(hashes))
    pairs = []
    block = max(1, 2**23 // len(hashes))  # bounds the memory should every image match every other
    for first in range(0, len(hashes), block):
        queries = np.ascontiguousarray(hashes[first : first + block])
        limits, _, found = index.range_search(queries, BITS + 1)  # strictly below
        for i, (start, stop) in enumerate(itertools.pairwise(limits), first):
            others = np.sort(found[start:stop])
            others = others[others > i]
            if len(others):
                apart = np.abs(levels[others].astype(np.int16) - levels[i]).mean(1)
                order = np.argsort(apart, kind="stable")[:NEIGHBOURS]
                pairs += [(i, j) for j in others[order[apart[order] <= LEVELS]].tolist()]
    return np.array(pairs, np.int64).reshape(-1, 2)


def equal_groups(digests: np.ndarray, readable: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of each set of two or more equal images, in order of the first."""
    rows = np.flatnonzero(readable)
    _, first, group, counts = np.unique(
        digests[rows], axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    group = group.ravel()
    order = np.argsort(group, kind="stable")
    starts = np.cumsum(counts) - counts
    for g in sorted(np.flatnonzero(counts > 1), key=lambda g: first[g]):
        yield rows[order[starts[g] : starts[g] + counts[g]]]
