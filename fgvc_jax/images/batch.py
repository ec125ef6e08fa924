"""A batch of canvases to a batch of images, each example with its own draw; jit them."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fgvc_jax.images.augment import eval_view, train_view
from fgvc_jax.images.view import View


def random_views(
    keys: jax.Array, pixels: jax.Array, sizes: jax.Array, view: View, dtype: DTypeLike
) -> jax.Array:
    """Augmented images [B, S, S, 3], or [B, V, S, S, 3] for V > 1 images an example, each with its own draw.

    Args:
      keys: [B], an example's own.
      pixels: uint8 [B, V, C, C, 3].
      sizes: int32 [B, V, 2], valid height and width.
      view: static settings.
      dtype: of the result.
    """

    def one(key, canvases, sizes) -> jax.Array:
        numbers = jnp.arange(canvases.shape[0])
        draw = jax.vmap(lambda n, c, s: train_view(jax.random.fold_in(key, n), c, s, view))
        return draw(numbers, canvases, sizes)

    images = jax.vmap(one)(keys, _wide(pixels, dtype), sizes).astype(dtype)
    return images[:, 0] if images.shape[1] == 1 else images


def plain_views(pixels: jax.Array, sizes: jax.Array, view: View, dtype: DTypeLike) -> jax.Array:
    """The evaluation crop of each image; arguments and shapes as `random_views`, without draws."""
    images = jax.vmap(jax.vmap(lambda c, s: eval_view(c, s, view)))(_wide(pixels, dtype), sizes)
    images = images.astype(dtype)
    return images[:, 0] if images.shape[1] == 1 else images


def _wide(pixels: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The canvases, in float64 where the result is: a view is then computed in it, else in float32."""
    return pixels.astype(dtype) if jnp.finfo(dtype).bits > 32 else pixels
