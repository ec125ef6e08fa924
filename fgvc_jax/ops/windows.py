"""Windows on a map: where they lie, how strong the map is inside, and the best few that hardly overlap."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Shape = tuple[int, int]  # height and width in cells


def boxes(shapes: Sequence[Shape], cells: Shape, stride: int, size: int) -> np.ndarray:
    """Pixels of every window of these shapes on a map: int32 [n, 4], shape by shape, in raster order.

    (first row, first column, last row, last column), inclusive. A window of h cells from cell i on lies on
    the rows stride * i - 1 to stride * (i + h) - 1, as the authors of MMAL-Net have it (METHODS.md D.3),
    inside 0 to size - 1.

    Args:
      cells: (height, width) of the map.
      stride: pixels for one cell.
      size: side of the image in pixels.
    """
    tables = []
    for height, width in shapes:
        top, left = np.indices((cells[0] - height + 1, cells[1] - width + 1)).reshape(2, -1)
        corners = np.stack([top, left, top + height, left + width], axis=1)
        tables.append(np.clip(stride * corners - 1, 0, size - 1))
    return np.concatenate(tables).astype(np.int32)


def means(map_BHW: jax.Array, shapes: Sequence[Shape]) -> jax.Array:
    """The mean of a map inside every window of these shapes, in the order of `boxes`: [B, n]."""

    def mean(height: int, width: int) -> jax.Array:
        total = lax.reduce_window(map_BHW, 0.0, lax.add, (1, height, width), (1, 1, 1), "VALID")
        return total.reshape(len(map_BHW), -1) / (height * width)

    return jnp.concatenate([mean(*shape) for shape in shapes], axis=1)


def suppress(scores_N: jax.Array, boxes_N4: jax.Array, count: int, overlap: float) -> jax.Array:
    """Greedy non-maximum suppression: the indices of the `count` best windows, best first, int32 [count].

    A window is left out where its intersection with a chosen one is more than `overlap` of their union, both
    counted in pixels of inclusive boxes. Equal scores go to the first. Where no window is left the last one
    chosen is repeated, as MMAL-Net's authors do (METHODS.md 1.3).

    Args:
      scores_N: finite.
      boxes_N4: whole numbers, as `boxes` gives them.
    """
    box = jnp.asarray(boxes_N4)
    area = (box[:, 2] - box[:, 0] + 1) * (box[:, 3] - box[:, 1] + 1)

    def choose(carry, _):
        left, last = carry
        best = jnp.where(jnp.max(left) > -jnp.inf, jnp.argmax(left), last)
        sides = jnp.minimum(box[:, 2:], box[best, 2:]) - jnp.maximum(box[:, :2], box[best, :2]) + 1
        both = jnp.prod(jnp.maximum(sides, 0), axis=1)
        close = both > overlap * (area + area[best] - both)
        return (jnp.where(close, -jnp.inf, left), best), best

    start = (scores_N, jnp.zeros((), jnp.argmax(scores_N).dtype))
    return lax.scan(choose, start, None, length=count)[1].astype(jnp.int32)
