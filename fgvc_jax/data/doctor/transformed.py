"""Copies that were mirrored, cropped, turned, brightened or made grey: found by their look, then laid over.

Candidates are the nearest neighbours by the low frequencies of a small grey image. Each is then aligned by
an affine map (Lucas and Kanade 1981, Gauss-Newton on the grey levels, coarse to fine, gain and offset free)
and is a copy where the details correlate, which those of look-alike things do not.
"""

import numpy as np
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

SIDE = 64  # of the small images
FREQUENCIES = 6  # horizontal and vertical, of 16; the mean is left out
ZOOM = 0.9  # candidates are looked for in the whole image and in its middle
NEIGHBOURS = 4  # candidates an image and way
ALIKE = 0.7  # cosine of the low frequencies of candidates
# (side, steps, correlation that is needed to go on) of the coarse alignments.
COARSE = ((16, 8, 0.75), (32, 6, 0.85))
STEPS = 6  # of the last one
SMOOTH = 2.0  # details are what is left over this Gaussian, pixels of SIDE
# Of 250 photos (produce31), cropped to 90 %, mirrored, turned by 3 degrees, brightened by 15 % or made grey,
# 0.9 at least. Of its pairs of photos all above 0.64 were looked at: each is one scene photographed twice.
# Pairs of other classes or splits are at 0.42 at most.
DETAILS = 0.85
OVERLAP = 0.6  # of the small image's area
BATCH = 256


def small(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> grey uint8 [SIDE, SIDE], whatever the aspect."""
    resized = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(resized.convert("L"))


def pairs(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int64 [P, 2], i < j, sorted: places in `rows` of two images of which one looks like a changed copy.

    The candidates are found exactly, at a cost quadratic in N. Images are taken in blocks, so that a
    memory-mapped array need not fit in memory.

    Args:
      images: uint8 [M, SIDE, SIDE], see `small`.
      rows: int [N], which of them are compared.
    """
    if len(rows) < 2:
        return np.zeros((0, 2), np.int64)
    found = [np.zeros((0, 2), np.int64)]
    candidates = _candidates(images, rows)
    for first in range(0, len(candidates), BATCH):
        block = candidates[first : first + BATCH]
        ones, others = (images[rows[block[:, c]]].astype(np.float32) for c in (0, 1))
        mirrored = block[:, 2] == 1
        ones[mirrored] = ones[mirrored, :, ::-1]
        maps = np.tile(np.eye(2, 3, dtype=np.float32), (len(block), 1, 1))
        maps[block[:, 3] == 1] *= ZOOM
        found.append(block[_are_copies(ones, others, maps), :2])
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _candidates(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int64 [P, 4]: (i, j, whether i is mirrored, whether it may be the middle of j)."""
    middle = _resampling(ZOOM)
    whole, inner = [], []
    for first in range(0, len(rows), 4096):
        block = images[rows[first : first + 4096]].astype(np.float32)
        whole.append(_low(block))
        inner.append(_low(middle @ block @ middle.T))
    whole, inner = np.concatenate(whole), np.concatenate(inner)
    # Mirroring changes the sign of the odd horizontal frequencies.
    odd = np.arange(FREQUENCIES**2)[1:] % FREQUENCIES % 2 == 1
    found = []
    for zoomed, stored in enumerate((whole, inner)):
        for mirrored in (0, 1):
            queries = np.where(odd, -whole, whole) if mirrored else whole
            i, j, scores = _nearest(queries, stored)
            if not zoomed:  # i in the whole of j is j in the whole of i
                i, j = np.minimum(i, j), np.maximum(i, j)
            way = np.broadcast_to([mirrored, zoomed], (len(i), 2))
            found.append(np.column_stack([i, j, way, 1e6 * (1 - scores)]))
    found = np.concatenate(found).astype(np.int64)
    # The better one of the two ways, mirrored or not, of the same two.
    found = found[np.lexsort(found.T[[4, 2, 1, 0]])]
    _, first = np.unique(found[:, :3], axis=0, return_index=True)
    return found[first, :4]


def _nearest(queries: np.ndarray, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(i, j, score) of the NEIGHBOURS rows j of `stored` that are nearest to each query i and ALIKE, j != i.

    Products in blocks: on wheels of faiss without AVX its search takes more than twice as long.
    """
    found = []
    block = max(1, 2**23 // len(stored))
    for first in range(0, len(queries), block):
        scores = queries[first : first + block] @ stored.T
        at = np.arange(len(scores))
        scores[at, first + at] = -1
        i, j = np.divmod(np.flatnonzero(scores >= ALIKE), len(stored))
        score = scores[i, j]
        order = np.lexsort((j, -score, i))
        i, j, score = i[order], j[order], score[order]
        keep = np.arange(len(i)) - np.searchsorted(i, i) < NEIGHBOURS
        found.append((first + i[keep], j[keep], score[keep]))
    i, j, score = (np.concatenate(part) for part in zip(*found, strict=True))
    return i, j, score


def _low(images: np.ndarray) -> np.ndarray:
    """float32 [N, FREQUENCIES^2 - 1], of length 1: the low frequencies but the mean."""
    coarse = _shrunk(images, 16)
    low = dctn(coarse, axes=(1, 2), norm="ortho")[:, :FREQUENCIES, :FREQUENCIES]
    low = low.reshape(len(images), -1)[:, 1:]
    return low / np.linalg.norm(low, axis=1, keepdims=True).clip(1e-3)


def _resampling(zoom: float) -> np.ndarray:
    """float32 [SIDE, SIDE]: the matrix that enlarges the middle of a line of pixels, bilinear."""
    at = (np.arange(SIDE) - (SIDE - 1) / 2) * zoom + (SIDE - 1) / 2
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(SIDE))).astype(np.float32)


def _shrunk(images: np.ndarray, side: int) -> np.ndarray:
    by = images.shape[1] // side
    return images.reshape(len(images), side, by, side, by).mean((2, 4))


def _are_copies(ones: np.ndarray, others: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Rows of the pairs whose details correlate when aligned.

    Args:
      ones, others: float32 [P, SIDE, SIDE].
      maps: float32 [P, 2, 3], from coordinates (x, y, 1) in the one image, -1..1, to those in the other: the
        first guess.
    """
    left = np.arange(len(ones))
    for side, steps, needed in COARSE:
        a, b = _shrunk(ones[left], side), _shrunk(others[left], side)
        maps = _align(a, b, maps, steps)
        seen, inside = _warped(b, maps)
        good = _correlation(a.reshape(len(left), -1), seen, inside) >= needed
        left, maps = left[good], maps[good]
        if not len(left):
            return left
    a, b = ones[left], others[left]
    maps = _align(a, b, maps, STEPS)
    seen, inside = _warped(b, maps)
    flat = a.reshape(len(left), -1)
    # Where the other one ends, the one's own pixels make no edge.
    filled = np.where(inside, _levelled(seen, flat, inside), flat).reshape(a.shape)
    details = (x - gaussian_filter(x, (0, SMOOTH, SMOOTH)) for x in (a, filled))
    a, b = (x.reshape(len(left), -1) for x in details)
    copies = (_correlation(a, b, inside) >= DETAILS) & (inside.mean(1) >= OVERLAP)
    return left[copies]


def _align(a: np.ndarray, b: np.ndarray, maps: np.ndarray, steps: int) -> np.ndarray:
    """Better maps: `steps` Gauss-Newton steps of the inverse compositional method (Baker, Matthews 2004)."""
    count, side, _ = a.shape
    x, y, one = _grid(side)
    down, across = (g.reshape(count, -1) * (side / 2) for g in np.gradient(a, axis=(1, 2)))
    slopes = np.stack(
        [across * x, across * y, across * one, down * x, down * y, down * one], axis=2
    )
    a = a.reshape(count, -1)
    for _ in range(steps):
        seen, inside = _warped(b, maps)
        error = np.where(inside, _levelled(seen, a, inside) - a, 0)
        used = slopes * inside[:, :, None]
        transposed = used.transpose(0, 2, 1)
        # The diagonal keeps images without any structure from being singular.
        change = np.linalg.solve(transposed @ used + np.eye(6), transposed @ error[:, :, None])
        step = np.tile(np.eye(3), (count, 1, 1))
        step[:, :2] += change.reshape(count, 2, 3).clip(-0.2, 0.2)
        square = np.tile(np.eye(3), (count, 1, 1))
        square[:, :2] = maps
        maps = (square @ np.linalg.inv(step))[:, :2].clip(-2, 2).astype(np.float32)
    return maps


def _grid(side: int) -> np.ndarray:
    """float32 [3, side^2]: x, y and 1 of the pixels' centres, -1..1 over the image."""
    at = ((np.arange(side) - (side - 1) / 2) / (side / 2)).astype(np.float32)
    x, y = np.meshgrid(at, at)
    return np.stack([x.ravel(), y.ravel(), np.ones(side * side, np.float32)])


def _warped(images: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the maps send the grid, bilinear: (float32 [P, side^2], bool [P, side^2], whether inside)."""
    side = images.shape[1]
    at = (maps @ _grid(side)) * (side / 2) + (side - 1) / 2
    inside = ((at >= 0) & (at <= side - 1)).all(1)
    at = at.clip(0, side - 1.001)
    corner = at.astype(np.int32)
    right, down = at[:, 0] - corner[:, 0], at[:, 1] - corner[:, 1]
    flat, first = images.reshape(len(images), -1), corner[:, 1] * side + corner[:, 0]
    top, top_right, bottom, bottom_right = (
        np.take_along_axis(flat, first + offset, 1) for offset in (0, 1, side, side + 1)
    )
    upper = top + (top_right - top) * right
    return upper + (bottom + (bottom_right - bottom) * right - upper) * down, inside


def _levelled(values: np.ndarray, wanted: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The values with gain and offset such that they are nearest to the wanted ones inside."""
    values_mean, wanted_mean = _mean(values, inside), _mean(wanted, inside)
    v, w = (values - values_mean) * inside, (wanted - wanted_mean) * inside
    gain = (v * w).sum(1, keepdims=True) / (v * v).sum(1, keepdims=True).clip(1e-3)
    return gain * (values - values_mean) + wanted_mean


def _correlation(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """float [P]: Pearson's, over the pixels inside; 0 where one of the two is flat."""
    a, b = ((x - _mean(x, inside)) * inside for x in (a, b))
    lengths = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return (a * b).sum(1) / lengths.clip(1e-3)


def _mean(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    return (values * inside).sum(1, keepdims=True) / inside.sum(1, keepdims=True).clip(1)
