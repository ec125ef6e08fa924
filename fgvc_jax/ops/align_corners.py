"""Crop-and-resize of a dynamic box where corners meet corners: torch's `align_corners=True`."""

import jax
import jax.numpy as jnp


def crop_align_corners(image_HWC: jax.Array, box_r0c0r1c1: jax.Array, out: int) -> jax.Array:
    """Resizes one box of one image to `out` x `out`, bilinear and without antialiasing.

    As `torch.nn.functional.interpolate(..., mode='bilinear', align_corners=True)` of the slice
    [r0:r1 + 1, c0:c1 + 1]: sample i reads the row r0 + i (r1 - r0) / (out - 1), so the first and the last
    sample are the box's first and last pixels. The whole image, (0, 0, H - 1, W - 1), makes it a plain
    resize, also of a map to a larger side. METHODS.md 1.1, option M: two hat-function matrices and two
    products, for any traced box; `jax.vmap` it over a batch.

    Args:
      image_HWC: float or integer, any scale.
      box_r0c0r1c1: [4], the first row, first column, last row, last column, in pixels, inclusive; whole or
        not. A box of one row or column repeats it.
      out: side of the square result.

    Returns:
      [out, out, C] in at least float32. Samples more than a pixel outside the image are 0.

    Differentiable in the image and in the box; put boxes that a rule has found under stop_gradient.
    """
    dtype = jnp.promote_types(image_HWC.dtype, jnp.float32)
    box = jnp.asarray(box_r0c0r1c1, dtype)
    share = jnp.arange(out, dtype=dtype) / max(1, out - 1)

    def matrix(axis: int) -> jax.Array:
        coordinate = box[axis] + share * (box[axis + 2] - box[axis])
        pixel = jnp.arange(image_HWC.shape[axis], dtype=dtype)
        return jnp.maximum(1 - jnp.abs(coordinate[:, None] - pixel), 0)

    # In full precision: bfloat16 or TF32 products would be off by a grey level or more.
    x_HOC = jnp.einsum("ow,hwc->hoc", matrix(1), image_HWC.astype(dtype), precision="highest")
    return jnp.einsum("ph,hoc->poc", matrix(0), x_HOC, precision="highest")
