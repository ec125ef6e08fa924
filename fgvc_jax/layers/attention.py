"""The parts of a transformer block (Vaswani et al. 2017), as in timm's ViT and Swin."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from fgvc_jax.layers.initializers import normal


def linear(inputs: int, outputs: int, **kw) -> nnx.Linear:
    """A linear layer with a normal kernel of standard deviation 0.02, as in timm's ViT and Swin.

    Args:
      kw: dtype, param_dtype and rngs.
    """
    return nnx.Linear(inputs, outputs, kernel_init=normal(0.02), **kw)


class Attention(nnx.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, **kw):
        self.qkv = linear(width, 3 * width, **kw)
        self.proj = linear(width, width, **kw)
        self.heads = heads

    def __call__(self, x_BND: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """Tokens [..., N, D] -> [..., N, D]; `bias` [..., heads, N, N] is added to the logits.

        Softmax is computed in at least float32.
        """
        weights, v = self._attend(x_BND, bias)
        out = jnp.einsum("...hnm,...mhd->...nhd", weights.astype(v.dtype), v)
        return self.proj(out.reshape(x_BND.shape))

    def weights(self, x_BND: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """How much each token takes from each, [..., heads, N, N] in at least float32; rows sum to 1."""
        return self._attend(x_BND, bias)[0]

    def _attend(self, x_BND, bias) -> tuple[jax.Array, jax.Array]:
        """(weights, values [..., N, heads, D / heads])."""
        *batch, count, width = x_BND.shape
        qkv = self.qkv(x_BND).reshape(*batch, count, 3, self.heads, width // self.heads)
        q, k, v = qkv[..., 0, :, :], qkv[..., 1, :, :], qkv[..., 2, :, :]
        logits = jnp.einsum("...nhd,...mhd->...hnm", q / math.sqrt(width // self.heads), k)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if bias is not None:
            logits += bias
        return jax.nn.softmax(logits), v


class Mlp(nnx.Module):
    """Two linear layers with GELU between them, computed exactly (not by tanh): [..., D] -> [..., D]."""

    def __init__(self, width: int, hidden: int, **kw):
        self.fc1 = linear(width, hidden, **kw)
        self.fc2 = linear(hidden, width, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=False))
