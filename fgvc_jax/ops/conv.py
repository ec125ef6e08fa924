"""Convolution in the form that is fastest on each platform."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# At least so many input channels go into one dense convolution that stands for several groups on a CPU: with
# fewer XLA's convolution is slow.
_CHANNELS = 32


def conv(
    x_BHWC: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    dimension_numbers: lax.ConvDimensionNumbers,
    feature_group_count: int = 1,
    **rest: Any,
) -> jax.Array:
    """`lax.conv_general_dilated`, with four kinds of it in other forms where compiled for a CPU.

    For the `conv_general_dilated` argument of `nnx.Conv` (NHWC, kernel HWIO). XLA's CPU convolution
    reaches about half the speed of its matrix product on 1x1 kernels, forward and backward; it has
    no fast form at all for groups: there a grouped convolution is many dense ones, a depthwise one
    (a channel a group) a sum of shifted slices. A kernel of more cells than the map (3x3 on the 2x2 that a
    ResNet's last stage has of a 64 pixel image) takes XLA over thirty times as long as one of as many; there
    it is a sum of products.

    Args:
      x_BHWC, kernel: float; kernel [height, width, C / groups, outputs].
      rest: passed on to `lax.conv_general_dilated`.

    Returns:
      [B, H', W', outputs], the dtype of x.
    """
    groups, strides = feature_group_count, window_strides

    def plain(x, kernel, groups=groups) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            dimension_numbers=dimension_numbers,
            feature_group_count=groups,
            **rest,
        )

    def product(x, kernel) -> jax.Array:
        x = x[:, :: strides[0], :: strides[1]]
        # In two dimensions: with four, XLA copies the transposed factor of the kernel's gradient.
        y = _product(x.reshape(-1, x.shape[-1]), kernel[0, 0], rest.get("precision"))
        return y.reshape(*x.shape[:-1], -1)

    def slices(x) -> list[tuple[int, int, jax.Array]]:
        """What each place of the kernel is multiplied with: (row, column, [B, H', W', C])."""
        x, (rows, columns) = jnp.pad(x, ((0, 0), *pads, (0, 0))), kernel.shape[:2]
        height, width = (
            (n - k) // s * s + 1
            for n, k, s in zip(x.shape[1:3], (rows, columns), strides, strict=True)
        )
        return [
            (i, j, x[:, i : i + height : strides[0], j : j + width : strides[1]])
            for i in range(rows)
            for j in range(columns)
        ]

    def shifted(x, kernel) -> jax.Array:
        dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
        kernel = kernel.astype(wide)
        return sum(x * kernel[i, j, 0] for i, j, x in slices(x.astype(wide))).astype(dtype)

    def summed(x, kernel) -> jax.Array:
        types = {"precision": rest.get("precision")}
        types["preferred_element_type"] = jnp.promote_types(x.dtype, jnp.float32)
        products = (jnp.einsum("bhwi,io->bhwo", y, kernel[i, j], **types) for i, j, y in slices(x))
        return sum(products).astype(x.dtype)

    def split(x, kernel) -> jax.Array:
        # Neighbouring groups share a dense convolution whose kernel is zero from one to another.
        inputs = kernel.shape[2]
        shared = math.gcd(groups, max(1, _CHANNELS // inputs))
        apart = jnp.eye(shared, dtype=kernel.dtype)[:, None, :, None]

        def dense(x, kernel) -> jax.Array:
            kernel = kernel.reshape(*kernel.shape[:2], 1, inputs, shared, -1) * apart
            return plain(x, kernel.reshape(*kernel.shape[:2], shared * inputs, -1), groups=1)

        parts = [jnp.split(array, groups // shared, axis=-1) for array in (x, kernel)]
        return jnp.concatenate([dense(*part) for part in zip(*parts, strict=True)], axis=-1)

    pads = padding
    if isinstance(padding, str):
        pads = lax.padtype_to_pads(x_BHWC.shape[1:3], kernel.shape[:2], strides, padding)
    dilated = any(set(rest.get(name) or (1,)) != {1} for name in ("lhs_dilation", "rhs_dilation"))
    if dilated:
        return plain(x_BHWC, kernel)
    if groups > 1:
        cpu = shifted if kernel.shape[2] == 1 and kernel.shape[3] == groups else split
    elif kernel.shape[:2] == (1, 1) and not any(sum(map(tuple, pads), ())):
        cpu = product
    elif math.prod(kernel.shape[:2]) > math.prod(x_BHWC.shape[1:3]):
        cpu = summed
    else:
        return plain(x_BHWC, kernel)
    return lax.platform_dependent(x_BHWC, kernel, cpu=cpu, default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x_NC: jax.Array, kernel_CK: jax.Array, precision: Any) -> jax.Array:
    """x @ kernel, with a gradient rule for CPUs.

    XLA:CPU multiplies a transposed matrix at half its speed where the result is higher than wide. So a kernel
    with more inputs than outputs gets its gradient transposed, and turned as a whole.
    """
    return jnp.dot(x_NC, kernel_CK, precision=precision)


def _product_forward(x, kernel, precision):
    return _product(x, kernel, precision), (x, kernel)


def _product_backward(precision, residuals, g):
    x, kernel = residuals

    def over_rows(a, b):
        return lax.dot_general(a, b, (((0,), (0,)), ((), ())), precision=precision)

    high = kernel.shape[0] > kernel.shape[1]
    # Behind the barrier, or XLA would turn it into the slow product.
    g_kernel = lax.optimization_barrier(over_rows(g, x)).T if high else over_rows(x, g)
    return jnp.dot(g, kernel.T, precision=precision), g_kernel


_product.defvjp(_product_forward, _product_backward)
