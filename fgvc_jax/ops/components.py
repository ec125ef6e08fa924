"""The largest connected part of a mask and its box, with static shapes."""

import jax
import jax.numpy as jnp
from jax import lax


def largest_component(mask_HW: jax.Array) -> jax.Array:
    """The largest of the parts of a mask whose cells touch each other, corners included.

    Of several largest ones the first in raster order, as "the first index of the largest area" among
    scikit-image's labels gives (METHODS.md 1.2). Every cell starts with a label of its own, and takes the
    largest one around it until nothing changes any more: as many rounds as the longest path within a part.

    Args:
      mask_HW: bool. `jax.vmap` it over a batch, which then takes the rounds of its slowest mask.

    Returns:
      bool [H, W]; nothing but False for an empty mask.
    """
    count = mask_HW.size
    # The first cell has the largest label; 0 is the background.
    own = jnp.where(mask_HW, count - jnp.arange(count).reshape(mask_HW.shape), 0)

    def spread(labels) -> jax.Array:
        around = lax.reduce_window(labels, 0, lax.max, (3, 3), (1, 1), "SAME")
        return jnp.where(mask_HW, around, 0)

    labels, _ = lax.while_loop(
        lambda pair: jnp.any(pair[0] != pair[1]),
        lambda pair: (spread(pair[0]), pair[0]),
        (spread(own), own),
    )
    sizes = jnp.bincount(labels.reshape(-1), length=count + 1).at[0].set(0)
    largest = count - jnp.argmax(sizes[::-1])
    return mask_HW & (labels == largest)


def bounding_box(mask_HW: jax.Array) -> jax.Array:
    """int32 [4]: first row, first column, row after the last, column after the last, of a mask's cells.

    The whole map, (0, 0, H, W), for an empty mask.
    """

    def ends(any_N) -> tuple[jax.Array, jax.Array]:
        return jnp.argmax(any_N), any_N.size - jnp.argmax(any_N[::-1])

    (top, bottom), (left, right) = ends(mask_HW.any(1)), ends(mask_HW.any(0))
    return jnp.stack([top, left, bottom, right]).astype(jnp.int32)
