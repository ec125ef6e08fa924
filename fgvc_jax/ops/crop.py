"""Crop-and-resize of a dynamic box with static shapes: two weight matrices and two products."""

from typing import Literal

import jax
import jax.numpy as jnp

Interpolation = Literal["bilinear", "bicubic"]


def crop_resize(
    canvas_HWC: jax.Array,
    box_yxhw: jax.Array,
    out: int,
    *,
    valid_hw: jax.Array,
    clamp: Literal["box", "image"] = "box",
    interpolation: Interpolation = "bilinear",
    flip: jax.Array | bool = False,
) -> jax.Array:
    """Resizes one box of one image to `out` x `out`, as Pillow's antialiased `resize` does.

    Args:
      canvas_HWC: uint8 or float, grey levels 0..255. The image lies at the top left; the rest is
        never read.
      box_yxhw: float [4], (top, left, height, width) in pixels of the image. May be traced: any
        box reuses the same compilation.
      out: side of the square result.
      valid_hw: int or float [2], height and width of the image inside the canvas.
      clamp: the pixels that a kernel may still read where it reaches over the border. 'box': the
        crop's alone (crop then resize, as random-resized-crop does); 'image': all of the image's
        (resize then crop, as at evaluation).
      interpolation: 'bilinear' or 'bicubic' (a = -0.5). Bicubic is clipped to 0..255 after each of
        the two passes, as Pillow's 8-bit arithmetic does; bilinear never leaves the range.
      flip: bool scalar; mirrors the result left to right.

    Returns:
      [out, out, C] in 0..255, float32 (float64 where the canvas is). Where a sample's centre lies
      outside the region it may read, the result is 0 (what zero padding gives).

    Differentiable in the canvas, and in the box wherever the kernel is.
    """
    dtype = jnp.promote_types(canvas_HWC.dtype, jnp.float32)
    box = jnp.asarray(box_yxhw, dtype)
    valid = jnp.asarray(valid_hw, dtype)
    height, width = canvas_HWC.shape[:2]

    def matrix(axis: int, size: int, mirror: jax.Array | bool) -> jax.Array:
        start, length, end = box[axis], box[axis + 2], valid[axis]
        if clamp == "image":
            low, high = jnp.zeros_like(end), end
        else:  # every pixel that the box touches, at least one
            low = jnp.clip(jnp.floor(start), 0, end - 1)
            high = jnp.clip(jnp.ceil(start + length), low + 1, end)
        return _resize_matrix(start, length, low, high, size, out, interpolation, mirror)

    bound = (lambda x: jnp.clip(x, 0, 255)) if interpolation == "bicubic" else (lambda x: x)
    # Columns first, as Pillow does: with clipping in between the order matters.
    precision = jax.lax.Precision.HIGH  # single-pass bfloat16 would be off by a grey level or more
    x_HOC = jnp.einsum(
        "ow,hwc->hoc", matrix(1, width, flip), canvas_HWC.astype(dtype), precision=precision
    )
    y_OOC = jnp.einsum("ph,hoc->poc", matrix(0, height, False), bound(x_HOC), precision=precision)
    return bound(y_OOC)


def _resize_matrix(
    start: jax.Array,
    length: jax.Array,
    low: jax.Array,
    high: jax.Array,
    size: int,
    out: int,
    interpolation: Interpolation,
    mirror: jax.Array | bool,
) -> jax.Array:
    """[out, size] weights that resample [start, start + length) to `out` samples.

    Sample i is centred at start + (i + 1/2) scale. The kernel is stretched by the scale where that
    shrinks the image (antialiasing), restricted to pixels in [low, high) and normalised.
    """
    scale = length / out
    index = jnp.arange(out)
    index = jnp.where(mirror, out - 1 - index, index)
    centre = (start + (index + 0.5) * scale)[:, None]
    pixel = jnp.arange(size)
    distance = jnp.abs(pixel + 0.5 - centre) / jnp.maximum(scale, 1)
    weight = _KERNELS[interpolation](distance)
    weight = jnp.where((pixel >= low) & (pixel < high), weight, 0)
    total = weight.sum(1, keepdims=True)
    inside = (centre >= low) & (centre <= high) & (total > 0)
    return jnp.where(inside, weight / jnp.where(inside, total, 1), 0).astype(scale.dtype)


def _hat(x: jax.Array) -> jax.Array:
    return jnp.maximum(1 - x, 0)


def _cubic(x: jax.Array, a: float = -0.5) -> jax.Array:
    """Keys' cubic convolution kernel (1981, eq. 15) for x >= 0."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


_KERNELS = {"bilinear": _hat, "bicubic": _cubic}
