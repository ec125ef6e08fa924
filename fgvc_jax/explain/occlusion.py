"""What a class's probability does when a part of the image is covered.

One cover over the hottest part, by a rule in place of report 003's hand (METHODS.md I.5), and a patch that is
slid over the image, which makes a heat map of its own (Zeiler & Fergus 2014, arXiv 1311.2901).
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fgvc_jax.ops.components import bounding_box, largest_component

THRESHOLD = 0.5  # of heat from 0 to 1
COLOURS = ("mean", "black")


def colour(name: str, mean: Sequence[float], std: Sequence[float]) -> tuple[float, ...]:
    """A colour of `COLOURS` as the net gets it, normalised: the mean of its training images, or black."""
    if name == "mean":
        return (0.0,) * len(mean)
    return tuple(-m / s for m, s in zip(mean, std, strict=True))


def hottest_box(heat_BSS: jax.Array) -> jax.Array:
    """The box around the largest connected part of the heat (from 0 to 1) that is at least `THRESHOLD`.

    int32 [B, 4]: first row, first column, last row, last column. Cells that touch at a corner are connected;
    of equally large parts the first in raster order. (0, 0, -1, -1), nothing, where nothing is hot.
    """
    hot = heat_BSS >= THRESHOLD
    boxes = jax.vmap(bounding_box)(jax.vmap(largest_component)(hot)) - jnp.array([0, 0, 1, 1])
    return jnp.where(hot.any((1, 2))[:, None], boxes, jnp.array([0, 0, -1, -1]))


def cover(images_BHWC: jax.Array, boxes_B4: jax.Array, filling: Sequence[float]) -> jax.Array:
    """The images with their boxes (as of `hottest_box`; they may reach beyond the image) in one colour."""
    top, left, bottom, right = boxes_B4.T[..., None, None]
    rows, columns = jnp.arange(images_BHWC.shape[1])[:, None], jnp.arange(images_BHWC.shape[2])
    inside = (top <= rows) & (rows <= bottom) & (left <= columns) & (columns <= right)
    return jnp.where(inside[..., None], jnp.array(filling, images_BHWC.dtype), images_BHWC)


def places(size: int, patch: int, cells: int) -> np.ndarray:
    """Boxes [cells * cells, 4] of a patch whose centres are those of cells x cells equal parts of the image.

    Row by row. At the border a patch reaches beyond the image.
    """
    centres = (2 * np.arange(cells) + 1) * size
    first = (centres - patch * cells + cells) // (2 * cells)
    rows, columns = (x.reshape(-1) for x in np.meshgrid(first, first, indexing="ij"))
    return np.stack([rows, columns, rows + patch - 1, columns + patch - 1], 1).astype(np.int32)


def drops(
    probability: Callable, images_BSSC: jax.Array, patch: int, cells: int, filling: Sequence[float]
) -> jax.Array:
    """How far a patch over each place lowers probabilities: [B, K, cells, cells], negative where it raises.

    One pass of the batch for each of the cells x cells places.

    Args:
      probability: images -> [B, K].
      patch: side of the patch in pixels.
      filling: its colour.
    """
    boxes = places(images_BSSC.shape[1], patch, cells)

    def at(box) -> jax.Array:
        return probability(cover(images_BSSC, box[None], filling))

    fallen = probability(images_BSSC) - jax.lax.map(at, boxes)  # [cells * cells, B, K]
    return jnp.moveaxis(fallen, 0, -1).reshape(*fallen.shape[1:], cells, cells)
