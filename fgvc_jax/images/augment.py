"""Views of an image inside the jitted step, one example at a time: vmap them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fgvc_jax.errors import UserError
from fgvc_jax.images.colour import colour_jitter, gaussian_blur
from fgvc_jax.images.operations import Op, apply
from fgvc_jax.images.policies import auto_augment, trivial_augment
from fgvc_jax.ops.crop import Interpolation, crop_resize

# One number a purpose, folded into the example's key: a new purpose shifts no other draw.
_CROP, _FLIP, _AUGMENT, _JITTER, _BLUR, _SHARPEN = range(6)

_POLICIES = {"trivial_augment_wide": trivial_augment, "auto_augment": auto_augment}
AUGMENTS = ("none", *_POLICIES)
CROPS = ("random_resized", "random")


class View(NamedTuple):
    """How a canvas becomes a network's input. Hashable, so it can be a static argument.

    Attributes:
      size: side S of the input.
      resize: length of the shorter side before the central crop, at evaluation, and before the
        random crop of crop='random'.
      mean, std: by channel, of values in 0..1.
      interpolation: 'bilinear' or 'bicubic'.
      crop_scale: range of the random crop's share of the image's area.
      crop_ratio: range of the random crop's width / height.
      flip: probability of mirroring left to right.
      crop: in training, 'random_resized', or 'random': `size` x `size` anywhere in the resized image.
      crop_pad: black pixels around the resized image, into which crop='random' may reach.
      squash: (height, width) to which the image is resized in place of `resize`, whatever its aspect;
        () keeps the aspect.
      augment: 'none', 'trivial_augment_wide' or 'auto_augment' (the ImageNet policy).
      augment_probability: that `augment` is applied to an example at all.
      augment_first: on the whole image before the crop, instead of on the crop; the cost is the
        canvas's in place of the input's. A rotation or a translation by 32 pixels then means the
        image's pixels, and black corners shrink with the crop: the results differ.
      jitter: strengths of brightness, contrast, saturation and hue (torchvision's ColorJitter).
      blur: probability of a 5 x 5 Gaussian blur.
      blur_sigma: range of its sigma, uniform, in pixels.
      sharpen: probability of sharpening.
      sharpness: its factor; 1 leaves the image as it is.
    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    crop: str = "random_resized"
    crop_pad: int = 0
    squash: tuple[int, ...] = ()
    augment: str = "none"
    augment_probability: float = 1.0
    augment_first: bool = False
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 5.0)
    sharpen: float = 0.0
    sharpness: float = 1.5


def train_view(key: jax.Array, canvas: jax.Array, hw: jax.Array, view: View) -> jax.Array:
    """Random crop, flip and augmentation of one canvas, normalised.

    The order is that of torchvision's training recipe: crop, flip, policy, then jitter, blur and
    sharpness. With any of these the crop is rounded to whole levels first, as a Pillow image is.

    Args:
      key: the example's own.
      canvas: uint8 [C, C, 3].
      hw: int32 [2], valid height and width.
      view: static settings.

    Returns:
      float32 [S, S, 3].

    Raises:
      UserError: `view.augment` is no policy.
    """
    keys = [jax.random.fold_in(key, purpose) for purpose in range(6)]
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
    return normalise(image, view)


def _augment(key: jax.Array, image: jax.Array, hw: jax.Array | None, view: View) -> jax.Array:
    if view.augment == "none":
        return image
    if view.augment not in _POLICIES:
        raise UserError(
            f"augment={view.augment!r} is no augmentation; there are: none, {', '.join(_POLICIES)}."
        )
    return _POLICIES[view.augment](key, image, view.augment_probability, hw)


def eval_view(canvas: jax.Array, hw: jax.Array, view: View) -> jax.Array:
    """Shorter side to `view.resize`, or all to `view.squash`; central crop, normalised: float32 [S, S, 3].

    Where the resized image is smaller than the crop, black surrounds it, as torchvision pads.
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


def random_resized_crop_box(
    key: jax.Array,
    h: jax.Array,
    w: jax.Array,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    tries: int = 10,
) -> jax.Array:
    """The random crop of Inception training (Szegedy et al. 2015), by torchvision's rule.

    Each try draws an area (uniform share `scale` of the image) and an aspect width / height
    (log-uniform in `ratio`), rounded to whole pixels; the first that fits is placed uniformly at a
    whole position. If none fits: the largest central crop with an aspect inside `ratio`.

    Returns:
      float32 [4], (top, left, height, width), whole numbers, inside the image.
    """
    key_area, key_ratio, key_place = jax.random.split(key, 3)
    h, w = jnp.float32(h), jnp.float32(w)

    area = h * w * jax.random.uniform(key_area, tries, jnp.float32, *scale)
    log_ratio = jnp.log(jnp.array(ratio, jnp.float32))
    aspect = jnp.exp(jax.random.uniform(key_ratio, tries, jnp.float32, *log_ratio))
    widths = jnp.round(jnp.sqrt(area * aspect))
    heights = jnp.round(jnp.sqrt(area / aspect))
    fits = (widths > 0) & (widths <= w) & (heights > 0) & (heights <= h)
    first = jnp.argmax(fits)
    crop = jnp.stack([heights[first], widths[first]])
    room = jnp.stack([h, w]) - crop
    place = jax.random.uniform(key_place, (2,), jnp.float32)
    corner = jnp.minimum(jnp.floor(place * (room + 1)), room)

    # max(1): a line of pixels still gives a crop; torchvision would round it to nothing.
    central = jnp.stack(
        [
            jnp.where(w / h < ratio[0], jnp.maximum(jnp.round(w / ratio[0]), 1), h),
            jnp.where(w / h > ratio[1], jnp.maximum(jnp.round(h * ratio[1]), 1), w),
        ]
    )
    central_corner = jnp.floor((jnp.stack([h, w]) - central) / 2)
    return jnp.where(
        fits.any(), jnp.concatenate([corner, crop]), jnp.concatenate([central_corner, central])
    )


def resized_size(hw: jax.Array, view: View) -> jax.Array:
    """int32 [2]: height and width after the resize, the long side cut to whole pixels as torchvision does."""
    if view.squash:
        return jnp.array(view.squash, jnp.int32)
    hw = jnp.asarray(hw, jnp.int32)
    return view.resize * hw // hw.min()  # the shorter side gives `resize` exactly


def random_crop_box(key: jax.Array, hw: jax.Array, view: View) -> jax.Array:
    """The box that a resize, a border of `crop_pad` and RandomCrop(size) show, in source pixels.

    Returns:
      float32 [4], (top, left, height, width); it reaches over the image into the border.
    """
    resized = resized_size(hw, view)
    room = jnp.maximum(resized + 2 * view.crop_pad - view.size, 0)
    corner = jnp.floor(jax.random.uniform(key, (2,), jnp.float32) * (room + 1))
    corner = jnp.minimum(corner, room) - view.crop_pad
    # Smaller than the crop: in its middle, as at evaluation.
    corner = jnp.where(resized + 2 * view.crop_pad < view.size, (resized - view.size) // 2, corner)
    return _in_source(corner, hw, resized, view.size)


def center_crop_box(hw: jax.Array, resized: jax.Array, size: int) -> jax.Array:
    """The box that a resize and torchvision's CenterCrop(size) show, in source pixels.

    The offset is rounded (half to even) to whole pixels of the resized image as there.

    Returns:
      float32 [4], (top, left, height, width); it reaches over the image where torchvision pads.
    """
    spare = resized - size
    corner = jnp.where(spare < 0, -(-spare // 2), jnp.round(spare / 2))
    return _in_source(corner, hw, resized, size)


def _in_source(corner: jax.Array, hw: jax.Array, resized: jax.Array, size: int) -> jax.Array:
    step = jnp.asarray(hw, jnp.float32) / resized  # source pixels a sample
    return jnp.concatenate([corner * step, size * step]).astype(jnp.float32)
