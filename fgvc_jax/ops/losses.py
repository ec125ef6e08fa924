"""Losses that several methods use, in at least float32.

In our own lines, since optax smooths a one-hot [B, C] and adds the two halves of a binary loss, which makes
their values and gradients differ from these in the last bit; without smoothing its cross-entropy is the same.
"""

import jax
import jax.numpy as jnp


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    smoothing: float = 0.0,
    *,
    partner: jax.Array | None = None,
    share: jax.Array | None = None,
) -> jax.Array:
    """Mean cross-entropy, of labels or of the mixed labels that mixup and CutMix give.

    With smoothing s the target is (1 - s) on the label plus s / C everywhere, as torch has it.

    Args:
      logits: float [B, C].
      labels: int [B] in 0..C-1.
      smoothing: s, in 0..1.
      partner: int [B], a second label of each example.
      share: float [B] in 0..1, of the first label; 1 - share is the second's. With `partner`, or not at all.

    Returns:
      scalar, float32 or wider.
    """
    logp = jax.nn.log_softmax(_wide(logits))
    picked = jnp.take_along_axis(logp, labels[:, None], axis=1)[:, 0]
    if (partner is None) != (share is None):
        raise ValueError(
            "cross_entropy takes partner and share together, as `images.mix` gives them"
        )
    if partner is not None:
        other = jnp.take_along_axis(logp, partner[:, None], axis=1)[:, 0]
        picked = share * picked + (1 - share) * other
    return -jnp.mean((1 - smoothing) * picked + smoothing * jnp.mean(logp, axis=1))


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean binary cross-entropy of logits float [B] and labels [B] in {0, 1}: scalar, float32 or wider."""
    logits = _wide(logits)
    return jnp.mean(jax.nn.softplus(logits) - labels * logits)
