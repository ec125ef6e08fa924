"""Crop boxes: which part of an image is seen. (top, left, height, width) in its pixels."""

import jax
import jax.numpy as jnp

from fgvc_jax.images.view import View


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

    Args:
      h, w: int scalars, of the image in pixels.

    Returns:
      float32 [4], (top, left, height, width), whole numbers, inside the image.
    """
    h, w = jnp.float32(h), jnp.float32(w)
    box, fits = _placed(key, h, w, scale, ratio, tries, strict=False)

    # max(1): a line of pixels still gives a crop; torchvision would round it to nothing.
    central = jnp.stack(
        [
            jnp.where(w / h < ratio[0], jnp.maximum(jnp.round(w / ratio[0]), 1), h),
            jnp.where(w / h > ratio[1], jnp.maximum(jnp.round(h * ratio[1]), 1), w),
        ]
    )
    central_corner = jnp.floor((jnp.stack([h, w]) - central) / 2)
    return jnp.where(fits, box, jnp.concatenate([central_corner, central]))


def erase_box(
    key: jax.Array,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    tries: int = 10,
) -> jax.Array:
    """The rectangle of random erasing (Zhong et al. 2017, arXiv 1708.04896), as timm draws it.

    As `random_resized_crop_box`, but `ratio` is of height / width, both sides are shorter than the
    image's, and where no try fits the rectangle is empty.

    Returns:
      float32 [4], (top, left, height, width), whole numbers, inside the `size` x `size` image.
    """
    side = jnp.float32(size)
    inverse = (1 / ratio[1], 1 / ratio[0])  # of width / height; log-uniform either way
    box, fits = _placed(key, side, side, scale, inverse, tries, strict=True)
    return jnp.where(fits, box, 0)


def _placed(
    key: jax.Array,
    h: jax.Array,
    w: jax.Array,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    tries: int,
    strict: bool,
) -> tuple[jax.Array, jax.Array]:
    """The first of several drawn boxes that fits, float32 [4], and whether one does.

    Args:
      ratio: width / height.
      strict: a box as long as the image does not fit.
    """
    key_area, key_ratio, key_place = jax.random.split(key, 3)
    area = h * w * jax.random.uniform(key_area, tries, jnp.float32, *scale)
    log_ratio = jnp.log(jnp.array(ratio, jnp.float32))
    aspect = jnp.exp(jax.random.uniform(key_ratio, tries, jnp.float32, *log_ratio))
    widths = jnp.round(jnp.sqrt(area * aspect))
    heights = jnp.round(jnp.sqrt(area / aspect))
    most = jnp.array([h, w]) - strict
    fits = (widths > 0) & (widths <= most[1]) & (heights > 0) & (heights <= most[0])
    first = jnp.argmax(fits)
    crop = jnp.stack([heights[first], widths[first]])
    room = jnp.stack([h, w]) - crop
    place = jax.random.uniform(key_place, (2,), jnp.float32)
    corner = jnp.minimum(jnp.floor(place * (room + 1)), room)
    return jnp.concatenate([corner, crop]), fits.any()


def resized_size(hw: jax.Array, view: View) -> jax.Array:
    """Height and width after the resize, the long side cut to whole pixels as torchvision does: int32 [2].

    Args:
      hw: int [2], of the image.
    """
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
    return placed_crop_box(hw, resized, size, jnp.full(2, 0.5))


def placed_crop_box(hw: jax.Array, resized: jax.Array, size: int, place: jax.Array) -> jax.Array:
    """As `center_crop_box`, at another place: float [2], 0 (top, left) to 1 (bottom, right)."""
    spare = resized - size
    corner = jnp.where(spare < 0, -(-spare // 2), jnp.round(spare * place))
    return _in_source(corner, hw, resized, size)


def _in_source(corner: jax.Array, hw: jax.Array, resized: jax.Array, size: int) -> jax.Array:
    step = jnp.asarray(hw, jnp.float32) / resized  # source pixels a sample
    return jnp.concatenate([corner * step, size * step]).astype(jnp.float32)
