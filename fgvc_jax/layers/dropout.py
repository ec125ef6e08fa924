"""Dropout and stochastic depth with a key for each example, so that a draw does not depend on its device."""

import math

import jax
import jax.numpy as jnp


def fold(keys_B: jax.Array | None, number: int) -> jax.Array | None:
    """Keys [B] of their own for the place with this number; None stays None."""
    if keys_B is None:
        return None
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_B)


def dropout(x: jax.Array, keys_B: jax.Array | None, rate: float) -> jax.Array:
    """Zeroes each value of x [B, ...] with probability `rate`, divides the others by 1 - rate.

    Source: Srivastava et al. 2014. With no keys (evaluation) or rate 0, x as it is.
    """
    return x if keys_B is None or rate == 0 else _drop(x, keys_B, rate, x.shape[1:])


def drop_path(x: jax.Array, keys_B: jax.Array | None, rate: float) -> jax.Array:
    """Zeroes whole examples of x [B, ...], what a block adds, divides the others by 1 - rate.

    Stochastic depth, a draw for each example (Huang et al. 2016, arXiv 1603.09382). With no keys
    (evaluation) or rate 0, x as it is.
    """
    return x if keys_B is None or rate == 0 else _drop(x, keys_B, rate, (1,) * (x.ndim - 1))


def linear_rates(rate: float, depth: int) -> list[float]:
    """Rates of `depth` blocks that rise from 0 to `rate`, as in Swin and ViT."""
    return [rate * i / max(1, depth - 1) for i in range(depth)]


def check_rate(rate: float, name: str) -> None:
    """ValueError unless a rate lies in 0 to below 1."""
    if not (0 <= rate < 1 and math.isfinite(rate)):
        raise ValueError(f"{name}={rate} must lie in 0 to below 1")


def _drop(x: jax.Array, keys_B: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys_B)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)
