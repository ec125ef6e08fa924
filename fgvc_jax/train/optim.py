"""Optimizers and schedules. The learning rate is applied by the train step, so it can be seen and scaled."""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax

from fgvc_jax.train import tree

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("constant", "cosine", "oscillating", "step", "plateau")


def optimizer(
    name: str,
    paths: Sequence[str],
    *,
    momentum: float,
    nesterov: bool = False,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
    no_decay: Sequence[str] = (),
    clip: float = 0.0,
) -> optax.GradientTransformation:
    """An optimizer of OPTIMIZERS as optax has it, without the learning rate, which the train step applies.

    'sgd' is torch's: weight decay is added to the gradient before the momentum buffer. 'adamw' decouples
    it (Loshchilov & Hutter 2019). The gradient is clipped by its global norm first.
    """
    decay = {path: not tree.matches(no_decay, path) for path in paths}
    chain = [optax.clip_by_global_norm(clip)] if clip else []
    if name == "sgd":
        chain.append(optax.add_decayed_weights(weight_decay, decay))
        if momentum:
            chain.append(optax.trace(momentum, nesterov))
    elif name == "adamw":
        chain.append(optax.scale_by_adam(b1=momentum, b2=beta2, nesterov=nesterov))
        chain.append(optax.add_decayed_weights(weight_decay, decay))
    else:
        raise ValueError(f"{name!r} is none of {OPTIMIZERS}")
    return optax.chain(*chain)


def learning_rate_scales(
    paths: Sequence[str], patterns: Sequence[tuple[str, float]]
) -> dict[str, float]:
    """A factor for each parameter path: that of the first pattern that matches, else 1."""
    return {
        path: next((f for pattern, f in patterns if tree.matches([pattern], path)), 1.0)
        for path in paths
    }


def schedule(
    name: str,
    *,
    peak: float,
    total: int,
    warmup: int = 0,
    drops: Sequence[int] = (),
    factor: float = 0.1,
    period: int = 400,
) -> Callable:
    """step (traced int32) -> learning rate (float32).

    In our own lines: optax's warm-up gives a first step of rate 0, which is lost, and its cosine rounds
    otherwise, so that finished runs would not go on bit for bit.

    Linear warm-up from 0 over `warmup` steps, then 'constant', 'cosine' to 0 at `total`, 'oscillating', a
    cosine to 0 and back in every `period` steps, or 'step', which multiplies by `factor` at each of `drops`.
    """

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        if name == "cosine":
            done = jnp.clip((step - warmup) / max(1, total - warmup), 0, 1)
            value = peak * 0.5 * (1 + jnp.cos(math.pi * done))
        elif (
            name == "oscillating"
        ):  # torch's CosineAnnealingLR, stepped on beyond its T_max = period / 2
            done = (jnp.maximum(step - warmup, 0) % period) / period
            value = peak * 0.5 * (1 + jnp.cos(2 * math.pi * done))
        elif name == "step":
            passed = sum((step >= drop).astype(jnp.float32) for drop in drops)
            value = peak * jnp.float32(factor) ** passed
        elif name in ("constant", "plateau"):  # the step multiplies by the plateau's factor
            value = jnp.full((), peak, jnp.float32)
        else:
            raise ValueError(f"{name!r} is none of {SCHEDULES}")
        # The first step is warm-up's first fraction, not zero, so that it is not lost.
        return value * jnp.minimum(1.0, (step + 1) / warmup) if warmup else value

    return rate
