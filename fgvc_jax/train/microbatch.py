"""A gradient function over a batch in blocks: gradient accumulation, and groups of a batch.

A gradient function has the signature

    value_and_grad(params, batch) -> ((loss, aux), grads)

params and grads: dict path -> array (what is trained, nothing else); batch: a pytree of arrays with
leading axis B, and scalars; aux: {'batch_stats': pytree, 'metrics': dict of scalars, 'carry': pytree of
arrays with leading axis B, and scalars}. The functions here take one and return one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fgvc_jax.errors import UserError


def accumulate(value_and_grad: Callable, n: int) -> Callable:
    """Gradient accumulation: the batch in n parts, one after the other.

    The activations of one part live at a time: compiled for a TPU v5e, a small convolutional net
    took 145 MiB of temporaries, in 4 parts 10 MiB. On CPU XLA saves no memory.

    Part i holds the examples i, n + i, 2n + i, ...: with the batch sharded in contiguous blocks
    each device keeps its own examples. Loss, gradients, statistics and metrics are means over the
    parts (the means over the batch where they are means over examples and no layer mixes examples).
    Arrays of `carry` come back in the order of the batch, its scalars as means; a scalar of `batch`
    goes to every part as it is.

    Raises:
      UserError: the batch does not divide by n.
    """
    return value_and_grad if n == 1 else _in_blocks(value_and_grad, n, 1, "accumulation steps")


def in_groups(value_and_grad: Callable, n: int) -> Callable:
    """As `accumulate`, with n contiguous blocks of the batch as the parts.

    Contiguous blocks are what n devices would each hold, so this gives the behaviour of code that
    runs on each device by itself (batch statistics, SAM's perturbation) and averages gradients.
    """
    return value_and_grad if n == 1 else _in_blocks(value_and_grad, n, 0, "groups")


def _in_blocks(value_and_grad, n, axis, what):
    """Unrolled: on CPU a convolution's gradient inside scan or vmap is over 20 times slower."""

    def split(x):
        if jnp.ndim(x) == 0:
            return x
        if x.shape[0] % n:
            raise UserError(
                f"The batch of {x.shape[0]} does not divide into {n} {what}: choose a batch size "
                f"that is a multiple of {n}."
            )
        rows = x.shape[0] // n
        return x.reshape(*((rows, n) if axis else (n, rows)), *x.shape[1:])

    def block_value_and_grad(params, batch):
        batch = jax.tree.map(split, batch)
        total, stats, carries = None, [], []
        for i in range(n):
            part = jax.tree.map(lambda x, i=i: _take(x, i, axis), batch)
            if total is not None:
                # This part waits for the sum so far, so that one part's activations live at a time.
                part, total = jax.lax.optimization_barrier((part, total))
            (loss, aux), grads = value_and_grad(params, part)
            stats.append(aux["batch_stats"])
            carries.append(aux["carry"])
            new = (loss, aux["metrics"], grads)
            total = new if total is None else jax.tree.map(jnp.add, total, new)
        loss, metrics, grads = jax.tree.map(lambda x: x / n, total)
        aux = {
            "batch_stats": jax.tree.map(lambda *xs: _mean(xs), *stats),
            "metrics": metrics,
            "carry": jax.tree.map(lambda *xs: _together(xs, axis), *carries),
        }
        return (loss, aux), grads

    return block_value_and_grad


def _take(x, i, axis):
    return jax.lax.index_in_dim(x, i, axis, False) if jnp.ndim(x) else x


def _together(xs, axis):
    if jnp.ndim(xs[0]) == 0:
        return _mean(xs)
    x = jnp.stack(xs, axis)
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _mean(xs):
    """Around the first, so that statistics that no part changed keep every bit."""
    if not jnp.issubdtype(xs[0].dtype, jnp.inexact):
        return xs[-1]  # a counter, which every part advances alike
    return xs[0] + sum(x - xs[0] for x in xs[1:]) / len(xs)
