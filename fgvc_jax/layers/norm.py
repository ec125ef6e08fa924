"""Normalisation with PyTorch's arithmetic."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from fgvc_jax.errors import UserError


def layer_norm(width: int, eps: float, **kw) -> nnx.LayerNorm:
    """Layer normalisation over the last axis (Ba et al. 2016), the variance around the mean as in torch.

    Args:
      kw: dtype, param_dtype and rngs.
    """
    return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, **kw)


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015), as torch.nn.BatchNorm2d.

    In training, x is normalised by the biased variance of the batch, and the running variance is
    updated with the unbiased one. Statistics are kept in `param_dtype` and computed in at least
    float32, the variance around the mean. Under a global-view `jax.jit` the batch is the global
    batch.

    Modes: `module.train()` and `module.eval()` set `use_running_average`;
    `module.set_attributes(BatchNorm, fixed=True)` makes layers keep to their running statistics in
    training as well (frozen BatchNorm); `module.set_attributes(BatchNorm, groups=8)` sets the
    groups.

    Args:
      features: length C of the last axis.
      eps: added to the variance.
      momentum: of the running statistics, old = momentum * old + (1 - momentum) * new. torch calls
        1 - momentum its momentum.
      groups: contiguous parts of the batch axis that are normalised separately, as several devices
        without synchronisation would; the running statistics move by the mean over groups.
      dtype: of the result; None keeps that of x.
    """

    def __init__(
        self,
        features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.9,
        groups: int = 1,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        del rngs  # nothing is drawn; taken so that all layers are constructed alike
        self.scale = nnx.Param(jnp.ones(features, param_dtype))
        self.bias = nnx.Param(jnp.zeros(features, param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros(features, param_dtype))
        self.var = nnx.BatchStat(jnp.ones(features, param_dtype))
        self.eps = eps
        self.momentum = momentum
        self.groups = groups
        self.dtype = dtype
        self.use_running_average = False
        self.fixed = False

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises x [B, ..., C]. Raises UserError where a group has fewer than two values a channel."""
        dtype = self.dtype or x.dtype
        wide = jnp.promote_types(x.dtype, jnp.float32)
        x = x.astype(wide)
        if self.use_running_average or self.fixed:
            return self._affine(x, self.mean[...], self.var[...]).astype(dtype)

        shape, batch = x.shape, x.shape[0]
        if batch % self.groups:
            raise UserError(
                f"BatchNorm with groups={self.groups} cannot divide a batch of {batch}: "
                "choose groups that divide the batch size."
            )
        count = x.size // (self.groups * shape[-1])
        if count < 2:
            raise UserError(
                f"BatchNorm needs more than one value a channel in training, got {count} from an input "
                f"of shape {shape} in {self.groups} group(s): use a larger batch or larger images."
            )
        y, mean, var = _normalise(
            x.reshape(self.groups, count, shape[-1]), self.scale[...], self.bias[...], self.eps
        )
        self._move(self.mean, mean)
        self._move(self.var, var * (count / (count - 1)))
        return y.reshape(shape).astype(dtype)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """For `nnx.view(module, use_running_average=True)`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _affine(self, x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        return _affine(x, mean, var, self.scale[...], self.bias[...], self.eps)

    def _move(self, running: nnx.BatchStat, new_G1C: jax.Array) -> None:
        old = running[...]
        new = jax.lax.stop_gradient(new_G1C).mean((0, 1)).astype(old.dtype)
        # Raw, because the indexed write (`running[...] = `) makes tracing quadratic on jax 0.10.
        running.set_raw_value(self.momentum * old + (1 - self.momentum) * new)


def _affine(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> jax.Array:
    return (x - mean) * (lax.rsqrt(var + eps) * scale) + bias


def _normalise(
    x_GNC: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(normalised x, mean [G, 1, C], biased variance [G, 1, C]) over axis 1."""

    def plain(x, scale, bias) -> tuple[jax.Array, jax.Array, jax.Array]:
        mean = x.mean(1, keepdims=True)
        var = jnp.square(x - mean).mean(1, keepdims=True)
        return _affine(x, mean, var, scale, bias, eps), mean, var

    return lax.platform_dependent(
        *(x_GNC, scale, bias), cpu=lambda *a: _by_products(*a, eps), default=plain
    )


def _sum(x_GNC: jax.Array) -> jax.Array:
    """Sum over axis 1, which is kept: XLA:CPU sums slowly, but multiplies matrices at full speed."""
    return jnp.matmul(jnp.ones((1, x_GNC.shape[1]), x_GNC.dtype), x_GNC, precision="highest")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _by_products(
    x_GNC: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _by_products_forward(x_GNC, scale, bias, eps)[0]


def _by_products_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """The results, and what the gradient needs of the computation."""
    mean = _sum(x) / x.shape[1]
    var = _sum(jnp.square(x - mean)) / x.shape[1]
    return (_affine(x, mean, var, scale, bias, eps), mean, var), (x, mean, var, scale)


def _by_products_backward(
    eps: float, residuals: tuple[jax.Array, ...], gradients: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradient of y alone: mean and variance go to the running statistics, which carry none."""
    x, mean, var, scale = residuals
    g = gradients[0]
    inverse = lax.rsqrt(var + eps)
    normalised = (x - mean) * inverse
    g_bias, g_scale = _sum(g), _sum(g * normalised)
    g_x = inverse * scale * (g - (g_bias + normalised * g_scale) / x.shape[1])
    return (
        g_x.astype(x.dtype),
        g_scale.sum((0, 1)).astype(scale.dtype),
        g_bias.sum((0, 1)).astype(scale.dtype),
    )


_by_products.defvjp(_by_products_forward, _by_products_backward)
