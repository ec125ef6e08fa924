"""Views of an image inside the jitted step, one example at a time: vmap them."""

import jax
import jax.numpy as jnp

from fgvc_jax.errors import choose
from fgvc_jax.images.boxes import (
    center_crop_box,
    erase_box,
    random_crop_box,
    random_resized_crop_box,
    resized_size,
)
from fgvc_jax.images.colour import colour_jitter, gaussian_blur
from fgvc_jax.images.operations import Op, apply
from fgvc_jax.images.policies import auto_augment, trivial_augment
from fgvc_jax.images.view import View
from fgvc_jax.ops.crop import crop_resize

# One number a purpose, folded into the example's key: a new purpose shifts no other draw.
_CROP, _FLIP, _AUGMENT, _JITTER, _BLUR, _SHARPEN, _ERASE = range(7)

_POLICIES = {"trivial_augment_wide": trivial_augment, "auto_augment": auto_augment}
AUGMENTS = ("none", *_POLICIES)
CROPS = ("random_resized", "random")
ERASE_MODES = ("pixel", "const")
ERASE_MODES = ("pixel", "const")


def train_view(key: jax.Array, canvas: jax.Array, hw: jax.Array, view: View) -> jax.Array:
    """Random crop, flip and augmentation of one canvas, normalised.

    The order is that of torchvision's training recipe: crop, flip, policy, then jitter, blur and
    sharpness. With any of these the crop is rounded to whole levels first, as a Pillow image is.
    Random erasing comes last, after normalisation.

    Args:
      key: the example's own.
      canvas: uint8 [C, C, 3].
      hw: int32 [2], valid height and width.
      view: static settings.

    Returns:
      float32 [S, S, 3].

    Raises:
      UserError: `view.augment`, `view.crop` or `view.erase_mode` is unknown.
    """
    choose(view.augment, AUGMENTS, "augment")
    choose(view.crop, CROPS, "crop")
    choose(view.erase_mode, ERASE_MODES, "erase_mode")
    keys = [jax.random.fold_in(key, purpose) for purpose in range(7)]
    if view.augment_first:
        canvas = _augment(keys[_AUGMENT], canvas, hw, view)
    if view.crop == "random":
        box = random_crop_box(keys[_CROP], hw, view)
    else:
        box = random_resized_crop_box(keys[_CROP], *hw, view.crop_scale, view.crop_ratio)
    image = crop_resize(
        canvas,
        box,
        view.size,
        valid_hw=hw,
        clamp="image" if view.crop == "random" else "box",
        interpolation=view.interpolation,
        flip=jax.random.bernoulli(keys[_FLIP], jnp.float32(view.flip)),
    )
    if not view.augment_first:
        image = _augment(keys[_AUGMENT], image, None, view)
    if any(view.jitter):
        image = colour_jitter(keys[_JITTER], image, view.jitter)
    if view.blur:
        use, sigma = jax.random.uniform(keys[_BLUR], (2,), jnp.float32)
        low, high = view.blur_sigma
        image = jnp.round(image)
        blurred = gaussian_blur(image, low + sigma * (high - low))
        image = jnp.where(use < view.blur, blurred, image)
    if view.sharpen:
        use = jax.random.uniform(keys[_SHARPEN], (), jnp.float32) < view.sharpen
        image = apply(image, jnp.where(use, Op.SHARPNESS, Op.IDENTITY), view.sharpness - 1)
    image = normalise(image, view)
    return random_erase(keys[_ERASE], image, view) if view.erase else image


def random_erase(key: jax.Array, image: jax.Array, view: View) -> jax.Array:
    """Random erasing as in timm: with probability `view.erase`, noise or zero in a random rectangle.

    Args:
      key: the example's own.
      image: normalised float [S, S, 3].
      view: static settings.
    """
    key_use, key_box, key_noise = jax.random.split(key, 3)
    top, left, height, width = erase_box(key_box, view.size, view.erase_scale, view.erase_ratio)
    y, x = jnp.arange(view.size)[:, None], jnp.arange(view.size)
    inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
    inside &= jax.random.uniform(key_use, (), jnp.float32) < view.erase
    new = 0.0
    if view.erase_mode == "pixel":
        new = jax.random.normal(key_noise, image.shape, jnp.float32)
    return jnp.where(inside[..., None], new, image)


def _augment(key: jax.Array, image: jax.Array, hw: jax.Array | None, view: View) -> jax.Array:
    if view.augment == "none":
        return image
    return _POLICIES[view.augment](key, image, view.augment_probability, hw)


def eval_view(canvas: jax.Array, hw: jax.Array, view: View) -> jax.Array:
    """Shorter side to `view.resize`, or all to `view.squash`; central crop, normalised.

    Where the resized image is smaller than the crop, black surrounds it, as torchvision pads.

    Args:
      canvas: uint8 [C, C, 3].
      hw: int32 [2], valid height and width.
      view: static settings.

    Returns:
      float32 [S, S, 3].
    """
    box = center_crop_box(hw, resized_size(hw, view), view.size)
    image = crop_resize(
        canvas, box, view.size, valid_hw=hw, clamp="image", interpolation=view.interpolation
    )
    return normalise(image, view)


def normalise(image: jax.Array, view: View) -> jax.Array:
    """Grey levels 0..255 [..., 3] to (x / 255 - mean) / std."""
    x = image / 255
    return (x - jnp.array(view.mean, x.dtype)) / jnp.array(view.std, x.dtype)
