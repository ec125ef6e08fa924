"""The parts of a transformer block (Vaswani et al. 2017), as in timm's ViT and Swin."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from fgvc_jax.layers.initializers import normal
from fgvc_jax.ops.gelu import gelu


def linear(inputs: int, outputs: int, **kw) -> nnx.Linear:
    """A linear layer with a normal kernel of standard deviation 0.02, as in timm's ViT and Swin.

    Args:
      kw: dtype, param_dtype and rngs.
    """
    return nnx.Linear(inputs, outputs, kernel_init=normal(0.02), **kw)


KINDS = ("auto", "plain")


class Attention(nnx.Module):
    """Multi-head self-attention with one projection for queries, keys and values.

    Attributes:
      kind: 'plain': products and a softmax. 'auto': on NVIDIA GPUs, in 16 bits and without a bias, cuDNN's
        kernel, which keeps no weights between tokens in memory; 'plain' elsewhere. It is the same function.
    """

    def __init__(self, width: int, heads: int, **kw):
        self.qkv = linear(width, 3 * width, **kw)
        self.proj = linear(width, width, **kw)
        self.heads = heads
        self.kind = "auto"

    def __call__(self, x_BND: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """Tokens [..., N, D] -> [..., N, D]; `bias` [..., heads, N, N] is added to the logits.

        Softmax is computed in at least float32.
        """
        q, k, v = _heads(self.qkv(x_BND), self.heads)
        out = None
        if self.kind == "auto" and bias is None:
            out = _on_gpus(q, k, v)
        if out is None:
            out = _mix(_weights(q, k, bias), v)
        return self.proj(jnp.moveaxis(out, -3, -2).reshape(x_BND.shape))

    def weights(self, x_BND: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """How much each token takes from each, [..., heads, N, N] in at least float32; rows sum to 1."""
        q, k, _ = _heads(self.qkv(x_BND), self.heads)
        return _weights(q, k, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _heads(qkv: jax.Array, heads: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values, [..., N, 3 D] -> each [..., heads, N, D / heads].

    Its gradient is put together in one array; the derived one is a sum of three that are mostly zeros.
    """
    parts = qkv.reshape(*qkv.shape[:-1], 3, heads, -1)
    return tuple(jnp.moveaxis(parts[..., part, :, :], -2, -3) for part in range(3))


def _heads_backward(heads, _, gradients):
    whole = jnp.stack([jnp.moveaxis(g, -3, -2) for g in gradients], axis=-3)
    return (whole.reshape(*whole.shape[:-3], -1),)


_heads.defvjp(lambda qkv, heads: (_heads(qkv, heads), None), _heads_backward)


def _weights(q: jax.Array, k: jax.Array, bias: jax.Array | None) -> jax.Array:
    # Scaled before the product: after it XLA:CPU takes a fifth more time for the gradient.
    logits = jnp.einsum("...nd,...md->...nm", q / math.sqrt(q.shape[-1]), k)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jax.nn.softmax(logits if bias is None else logits + bias)


def _mix(weights: jax.Array, v: jax.Array) -> jax.Array:
    return weights.astype(v.dtype) @ v


def _on_gpus(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array | None:
    """Attention by cuDNN where it is compiled for an NVIDIA GPU; None where this JAX has no cuDNN for it."""

    def cudnn(q, k, v):
        count = q.shape[2]
        rows = ((0, 0), (0, -count % 8), (0, 0), (0, 0))  # its kernels want eights
        lengths = jnp.full(len(q), count, jnp.int32)
        out = jax.nn.dot_product_attention(
            *(jnp.pad(jnp.moveaxis(x, 1, 2), rows) for x in (q, k, v)),
            query_seq_lengths=lengths,
            key_value_seq_lengths=lengths,
            implementation="cudnn",
        )
        return jnp.moveaxis(out[:, :count], 2, 1)

    if q.ndim != 4 or jnp.finfo(q.dtype).bits != 16 or _before_ampere():
        return None
    try:
        jax.eval_shape(cudnn, q, k, v)
    except (RuntimeError, NotImplementedError):  # no cuDNN, or sizes that it does not take
        return None
    return lax.platform_dependent(
        *(q, k, v), cuda=cudnn, default=lambda q, k, v: _mix(_weights(q, k, None), v)
    )


def _before_ampere() -> bool:
    """Whether a GPU of this machine is older than those for which cuDNN has kernels of attention."""
    gpus = (device for device in jax.local_devices() if device.platform == "gpu")
    return any(float(getattr(gpu, "compute_capability", 8)) < 8 for gpu in gpus)


class Mlp(nnx.Module):
    """Two linear layers with GELU between them, computed exactly (not by tanh): [..., D] -> [..., D]."""

    def __init__(self, width: int, hidden: int, **kw):
        self.fc1 = linear(width, hidden, **kw)
        self.fc2 = linear(hidden, width, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(gelu(self.fc1(x)))
