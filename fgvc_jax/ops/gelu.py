"""The Gaussian error linear unit (Hendrycks & Gimpel 2016, arXiv 1606.08415), exact, not by tanh."""

import math

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x), Phi the normal distribution, as torch.nn.GELU: any shape; computed in at least float32.

    Its gradient is computed from x alone: the derived rule keeps another array of that size for each call.
    """
    wide = _wide(x)
    return (wide * _phi(wide)).astype(x.dtype)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _phi(x: jax.Array) -> jax.Array:
    return (1 + lax.erf(x * math.sqrt(0.5))) / 2


def _forward(x):
    return gelu(x), x


def _backward(x, g):
    wide = _wide(x)
    density = jnp.exp(-jnp.square(wide) / 2) / math.sqrt(2 * math.pi)
    return ((g * (_phi(wide) + wide * density)).astype(x.dtype),)


gelu.defvjp(_forward, _backward)
