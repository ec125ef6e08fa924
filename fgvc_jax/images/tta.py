"""Test-time augmentation: several views of an image, whose probabilities are averaged."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fgvc_jax.images.augment import normalise
from fgvc_jax.images.boxes import placed_crop_box, resized_size
from fgvc_jax.images.view import View
from fgvc_jax.ops.crop import crop_resize

# By kind, where each view's crop lies between top and bottom, left and right (0 to 1), and whether it is
# mirrored. The central crop, which is the view of evaluation, comes first.
KINDS = {
    "flip": ((0.5, 0.5, 0.0), (0.5, 0.5, 1.0)),
    "five_crop": ((0.5, 0.5, 0.0), *((y, x, 0.0) for y in (0.0, 1.0) for x in (0.0, 1.0))),
}


def placed_views(
    pixels: jax.Array, sizes: jax.Array, place: jax.Array, view: View, dtype: DTypeLike
) -> jax.Array:
    """The crop of each image at one place: [B, S, S, 3].

    Args:
      pixels: uint8 [B, 1, C, C, 3].
      sizes: int32 [B, 1, 2], valid height and width.
      place: float [3], a view of `KINDS`; may be traced.
      view: static settings.
      dtype: of the result.
    """

    def one(canvas, hw):
        box = placed_crop_box(hw, resized_size(hw, view), view.size, place[:2])
        image = crop_resize(
            canvas,
            box,
            view.size,
            valid_hw=hw,
            clamp="image",
            interpolation=view.interpolation,
            flip=place[2] > 0.5,
        )
        return normalise(image, view)

    return jax.vmap(one)(pixels[:, 0], sizes[:, 0]).astype(dtype)


def places(kind: str) -> jax.Array:
    """The views of a kind, float32 [V, 3]."""
    return jnp.array(KINDS[kind], jnp.float32)
