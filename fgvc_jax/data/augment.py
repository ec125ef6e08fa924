"""Views of an image inside the jitted step, one example at a time: vmap them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fgvc_jax.ops.crop import Interpolation, crop_resize

# One number a purpose, folded into the example's key: a new purpose shifts no other draw.
_CROP, _FLIP = 0, 1


class View(NamedTuple):
    """How a canvas becomes a network's input. Hashable, so it can be a static argument.

    Attributes:
      size: side S of the input.
      resize: length of the shorter side before the central crop, at evaluation.
      mean, std: by channel, of values in 0..1.
      interpolation: 'bilinear' or 'bicubic'.
      crop_scale: range of the random crop's share of the image's area.
      crop_ratio: range of the random crop's width / height.
      flip: probability of mirroring left to right.
    """

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5


def train_view(key: jax.Array, canvas: jax.Array, hw: jax.Array, view: View) -> jax.Array:
    """Random-resized-crop and flip of one canvas, normalised.

    Args:
      key: the example's own.
      canvas: uint8 [C, C, 3].
      hw: int32 [2], valid height and width.
      view: static settings.

    Returns:
      float32 [S, S, 3].
    """
    box = random_resized_crop_box(
        jax.random.fold_in(key, _CROP), hw[0], hw[1], view.crop_scale, view.crop_ratio
    )
    flip = jax.random.bernoulli(jax.random.fold_in(key, _FLIP), jnp.float32(view.flip))
    image = crop_resize(
        canvas,
        box,
        view.size,
        valid_hw=hw,
        clamp="box",
        interpolation=view.interpolation,
        flip=flip,
    )
    return normalise(image, view)


def eval_view(canvas: jax.Array, hw: jax.Array, view: View) -> jax.Array:
    """Shorter side to `view.resize`, central crop of `view.size`, normalised: float32 [S, S, 3].

    Where the resized image is smaller than the crop, black surrounds it, as torchvision pads.
    """
    box = center_crop_box(hw[0], hw[1], view.resize, view.size)
    image = crop_resize(
        canvas, box, view.size, valid_hw=hw, clamp="image", interpolation=view.interpolation
    )
    return normalise(image, view)


def normalise(image: jax.Array, view: View) -> jax.Array:
    """Grey levels 0..255 [..., 3] to (x / 255 - mean) / std."""
    return (image / 255 - jnp.array(view.mean)) / jnp.array(view.std)


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


def center_crop_box(h: jax.Array, w: jax.Array, resize: int, size: int) -> jax.Array:
    """The box that Resize(resize) and CenterCrop(size) of torchvision show, in source pixels.

    The resized long side is cut, and the offset rounded (half to even), to whole pixels of the
    resized image as there.

    Returns:
      float32 [4], (top, left, height, width); it reaches over the image where torchvision pads.
    """
    hw = jnp.stack([jnp.int32(h), jnp.int32(w)])
    resized = resize * hw // hw.min()  # the shorter side gives `resize` exactly
    spare = resized - size
    corner = jnp.where(spare < 0, -(-spare // 2), jnp.round(spare / 2))
    step = hw / resized  # source pixels a sample
    return jnp.concatenate([corner * step, size * step]).astype(jnp.float32)
