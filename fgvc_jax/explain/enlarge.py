"""Heat maps in the size of the image."""

import jax
import jax.numpy as jnp


def enlarge(heat_BHW: jax.Array, size: int, boxes_B4: jax.Array | None = None) -> jax.Array:
    """Heat [B, h, w] -> [B, size, size], bilinear between the centres of the cells.

    Args:
      boxes_B4: int, first row, first column, last row, last column of the part of the image that the heat is
        of; the heat is 0 around it. None = the whole image.
    """
    if boxes_B4 is None:
        boxes_B4 = jnp.broadcast_to(jnp.array([0, 0, size - 1, size - 1]), (len(heat_BHW), 4))
    top, left, bottom, right = boxes_B4.T[..., None]
    pixels = jnp.arange(size)

    def shares(first, last, cells) -> jax.Array:
        """[B, size, cells]: how much each pixel takes of each cell."""
        place = (pixels - first + 0.5) * cells / (last - first + 1) - 0.5
        place = jnp.clip(place, 0, cells - 1)[..., None]
        near = jnp.maximum(1 - jnp.abs(place - jnp.arange(cells)), 0)
        inside = (first <= pixels) & (pixels <= last)
        return jnp.where(inside[..., None], near, 0)

    _, height, width = heat_BHW.shape
    rows, columns = shares(top, bottom, height), shares(left, right, width)
    return jnp.einsum("byh,bhw,bxw->byx", rows, heat_BHW, columns, precision="highest")
