"""Random initial weights without a compilation for every shape.

Biases start at 0 (flax's default), where torch's Linear and Conv2d draw them uniformly from +-1/sqrt(fan_in).
The published nets set theirs to 0 too, or use none, but heads that are made by plain torch layers do not:
`torch_bias` is for them.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

_BLOCK = 1 << 16


@jax.jit
def _draw(key: jax.Array, number: jax.Array | int) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, number), (_BLOCK,), jnp.float32)


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _assemble(
    blocks: jax.Array | list[jax.Array], std: float, shape: tuple[int, ...], dtype: DTypeLike
) -> jax.Array:
    flat = jnp.concatenate(blocks)[: math.prod(shape)]
    return (std * flat).reshape(shape).astype(dtype)


def torch_std(fan_in: int) -> float:
    """Standard deviation of the kernels that torch's Linear and Conv2d draw: 1 / sqrt(3 fan_in)."""
    return 1 / math.sqrt(3 * fan_in)


def torch_bias(fan_in: int) -> Initializer:
    """Initializer of the biases that torch's Linear and Conv2d draw: uniform in +-1 / sqrt(fan_in).

    Args:
      fan_in: inputs of one output: features of a linear layer, kernel^2 * channels / groups of a
        convolution.
    """
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32, out_sharding=None) -> jax.Array:
        del out_sharding  # part of nnx's signature
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def normal(std: float) -> Initializer:
    """Initializer (key, shape, dtype) -> normal draws with mean 0 and this standard deviation.

    Drawn in blocks of one size: compiling `jax.random.normal` takes 0.4 s or more for each new
    shape on a CPU, which is most of the time that building a ResNet takes.
    """

    def init(key, shape, dtype=jnp.float32, out_sharding=None) -> jax.Array:
        del out_sharding  # part of nnx's signature
        count = -(-math.prod(shape) // _BLOCK)
        if isinstance(key, jax.core.Tracer):  # inside jit: one loop, not `count` copies to compile
            blocks = jax.lax.map(lambda number: _draw(key, number), jnp.arange(count))
        else:
            blocks = [_draw(key, number) for number in range(count)]
        return _assemble(blocks, std, tuple(shape), jnp.dtype(dtype))

    return init


def kaiming_fan_out(kernel_size: int, outputs: int) -> Initializer:
    """Normal with variance 2 / (kernel_size^2 * outputs): He et al. 2015, as in torchvision's nets."""
    return normal(math.sqrt(2 / (kernel_size**2 * outputs)))
