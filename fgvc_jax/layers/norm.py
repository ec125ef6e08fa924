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
    float32, see `_moments`. Under a global-view `jax.jit` the batch is the global
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
        if self.use_running_average or self.fixed:
            statistics = (self.mean[...], self.var[...], self.scale[...], self.bias[...])
            return _affine(_wide(x), *statistics, self.eps).astype(dtype)

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
        x = x.reshape(self.groups, batch // self.groups, *shape[1:])
        y, mean, var = _normalise(x, self.scale[...], self.bias[...], self.eps)
        self._move(self.mean, mean)
        self._move(self.var, var * (count / (count - 1)))
        return y.reshape(shape).astype(dtype)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """For `nnx.view(module, use_running_average=True)`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def _move(self, running: nnx.BatchStat, new_GC: jax.Array) -> None:
        old = running[...]
        new = new_GC.reshape(-1, len(old)).mean(0).astype(old.dtype)
        # Raw, because the indexed write (`running[...] = `) makes tracing quadratic on jax 0.10.
        running.set_raw_value(self.momentum * old + (1 - self.momentum) * new)


def _affine(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> jax.Array:
    return (x - mean) * (lax.rsqrt(var + eps) * scale) + bias


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _sum(x: jax.Array) -> jax.Array:
    """[G, ..., C] -> [G, 1, ..., C], the sum over the axes between."""
    return jnp.sum(x, tuple(range(1, x.ndim - 1)), keepdims=True)


def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance [G, 1, ..., C] of x [G, ..., C].

    Where x has 16 bits, one pass over it sums values and squares in float32, whose rounding is below that of
    x itself. Where it has more, the variance is taken around the mean, in a second pass.
    """
    one_pass, x = jnp.finfo(x.dtype).bits < 32, _wide(x)
    count = x.size // (x.shape[0] * x.shape[-1])
    mean = _sum(x) / count
    if one_pass:
        return mean, jnp.maximum(_sum(jnp.square(x)) / count - jnp.square(mean), 0)
    return mean, _sum(jnp.square(x - mean)) / count


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(normalised x [G, ..., C], mean and biased variance [G, 1, ..., C]), in at least float32.

    With a gradient rule of its own, which reads x as it came, and twice; the derived one reads more. Mean and
    variance go to the running statistics, which carry no gradient.
    """
    return _normalise_forward(x, scale, bias, eps)[0]


def _normalise_forward(x, scale, bias, eps):
    mean, var = _moments(x)
    return (_affine(_wide(x), mean, var, scale, bias, eps), mean, var), (x, mean, var, scale)


def _normalise_backward(eps, residuals, gradients):
    x, mean, var, scale = residuals
    g, inverse = gradients[0], lax.rsqrt(var + eps)
    normalised = (_wide(x) - mean) * inverse
    g_bias, g_scale = _sum(g), _sum(g * normalised)
    count = x.size // (x.shape[0] * x.shape[-1])
    g_x = inverse * scale * (g - (g_bias + normalised * g_scale) / count)
    sums = (total.reshape(-1, len(scale)).sum(0) for total in (g_scale, g_bias))
    return (g_x.astype(x.dtype), *(total.astype(scale.dtype) for total in sums))


_normalise.defvjp(_normalise_forward, _normalise_backward)
