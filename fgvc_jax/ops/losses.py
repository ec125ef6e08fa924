"""Losses that several methods use, in at least float32."""

import jax
import jax.numpy as jnp


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Mean cross-entropy of logits [B, C] and labels int [B] in 0..C-1.

    With smoothing s the target is (1 - s) on the label plus s / C everywhere, as torch has it.
    """
    logp = jax.nn.log_softmax(_wide(logits))
    picked = jnp.take_along_axis(logp, labels[:, None], axis=1)[:, 0]
    return -jnp.mean((1 - smoothing) * picked + smoothing * jnp.mean(logp, axis=1))


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean binary cross-entropy of logits [B] and labels [B] in {0, 1}."""
    logits = _wide(logits)
    return jnp.mean(jax.nn.softplus(logits) - labels * logits)
