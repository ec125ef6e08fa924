"""The train step and the predict step: pure functions, jitted over the mesh.

    gather canvases -> crop, flip, normalise -> for each update: forward, loss, backward, optimizer

Randomness is fold_in(seed, step, update, position in the global batch, view): a draw belongs to an example,
whatever device holds it. The images are drawn with update 0, the method's own draws with 1, 2, ...
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fgvc_jax.data import feed
from fgvc_jax.images import augment
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.train import course, tree
from fgvc_jax.train import mesh as meshes

# step (int32), params, stats (flat dictionaries), opt, course (see fgvc_jax.train.course), and with a
# moving average of the weights ema: {'params', 'stats'}
State = dict[str, Any]


def example_keys(seed, step, update: int, batch: int) -> jax.Array:
    """A key for each position of the global batch: [batch]."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), update)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(jnp.arange(batch))


def random_views(keys, pixels, sizes, view: augment.View, dtype) -> jax.Array:
    """Augmented images [B, S, S, 3], or [B, V, S, S, 3] for V > 1 views, each with its own draw."""

    def one(key, canvases, sizes):
        numbers = jnp.arange(canvases.shape[0])
        draw = jax.vmap(lambda n, c, s: augment.train_view(jax.random.fold_in(key, n), c, s, view))
        return draw(numbers, canvases, sizes)

    images = jax.vmap(one)(keys, pixels, sizes).astype(dtype)
    return images[:, 0] if images.shape[1] == 1 else images


def plain_views(pixels, sizes, view: augment.View, dtype) -> jax.Array:
    """The same shapes with the evaluation crop."""
    images = jax.vmap(jax.vmap(lambda c, s: augment.eval_view(c, s, view)))(pixels, sizes)
    images = images.astype(dtype)
    return images[:, 0] if images.shape[1] == 1 else images


def fix_batch_norm(module: nnx.Module, freeze: Sequence[str]) -> None:
    """BatchNorm whose scale is frozen keeps its running statistics, in training too."""
    for path, layer in nnx.iter_modules(module):
        if isinstance(layer, BatchNorm):
            layer.fixed = tree.matches(freeze, "/".join(map(str, (*path, "scale"))))


def init_state(
    params: tree.Flat, stats: tree.Flat, optimizer, freeze: Sequence[str], ema: bool = False
) -> State:
    trainable = {path: p for path, p in params.items() if not tree.matches(freeze, path)}
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "stats": stats,
        "opt": optimizer.init(trainable),
        "course": course.start(),
    }
    if ema:  # a copy: the step gives away the buffers of its state, each of which may appear once
        state["ema"] = jax.tree.map(jnp.copy, {"params": params, "stats": stats})
    return state


def train_step(
    module: nnx.Module,
    state: State,
    *,
    mesh: Mesh,
    view: augment.View,
    optimizer: optax.GradientTransformation,
    rate: Callable,
    scales: dict[str, float],
    freeze: Sequence[str],
    total_steps: int,
    dtype,
    wrap: Callable = lambda gradient: gradient,
    ema: float = 0.0,
):
    """The jitted step: (state, resident, batch, seed) -> (state, metrics), the state donated.

    The seed is an argument, so that runs with several seeds share one compilation.

    Args:
      module: the method around its backbone, in train mode. Each of `module.updates` is one optimizer
        update: update(module, batch, carry, rngs, progress) -> (loss, carry, metrics), where batch has
        'image' and the feed's columns, carry starts as {} and passes from one update of a step to the
        next, rngs is a key for each example, progress goes from 0 to 1, and metrics are scalars.
      state: for its shapes.
      rate: step -> learning rate; scales: factor by parameter path.
      freeze: patterns of parameter paths that get no gradient.
      wrap: around `jax.value_and_grad`'s function, where SAM and accumulation go.
      ema: decay of the moving average of parameters and statistics; shorter in the first steps, where it
        is (1 + step) / (10 + step).
    """
    static, _, _ = tree.split(module)
    updates = type(module).updates
    spread = NamedSharding(mesh, feed.BATCH)

    def one_update(number: int) -> Callable:
        # Each update is an inner jit: tracing several in one function grows faster than their number.
        @jax.jit
        def apply(params, stats, opt, batch, carry, keys, step, lr):
            frozen = {path: p for path, p in params.items() if tree.matches(freeze, path)}
            trainable = {path: p for path, p in params.items() if path not in frozen}

            def loss(trainable, inputs):
                merged = tree.merge(static, frozen | trainable, stats)
                value, carry, metrics = updates[number](
                    merged, inputs["batch"], inputs["carry"], inputs["keys"], step / total_steps
                )
                aux = {"stats": tree.statistics(merged), "carry": carry, "metrics": metrics}
                return value, aux

            gradient = wrap(jax.value_and_grad(loss, has_aux=True))
            inputs = {"batch": batch, "carry": carry, "keys": keys}
            (value, aux), grads = gradient(trainable, inputs)
            moves, opt = optimizer.update(grads, opt, trainable)
            moved = {
                path: (p - (lr * scales[path]).astype(p.dtype) * moves[path]).astype(p.dtype)
                for path, p in trainable.items()
            }
            metrics = aux["metrics"] | {"loss": value, "grad_norm": optax.global_norm(grads)}
            return frozen | moved, aux["stats"], opt, aux["carry"], metrics

        return apply

    applies = [one_update(number) for number in range(len(updates))]

    def step(state: State, resident, batch, seed):
        pixels, sizes = feed.gather(resident, batch, mesh)
        now, examples = state["step"], pixels.shape[0]
        keys = example_keys(seed, now, 0, examples)
        images = random_views(keys, pixels, sizes, view, dtype)
        columns = {name: c for name, c in batch.items() if name not in ("index", "pixels", "sizes")}
        columns["image"] = jax.lax.with_sharding_constraint(images, spread)
        params, stats, opt = state["params"], state["stats"], state["opt"]
        lr = rate(now) * state["course"]["rate_factor"]
        carry, metrics = {}, {}
        for number, apply in enumerate(applies):
            keys = example_keys(seed, now, 1 + number, examples)
            params, stats, opt, carry, new = apply(
                params, stats, opt, columns, carry, keys, now, lr
            )
            suffix = f"_{number + 1}" if len(applies) > 1 else ""
            metrics |= {name + suffix: value for name, value in new.items()}
        metrics["learning_rate"] = lr
        new_state = state | {"step": now + 1, "params": params, "stats": stats, "opt": opt}
        if ema:
            keep = jnp.minimum(ema, (1 + now) / (10 + now))
            new_state["ema"] = jax.tree.map(
                lambda old, new: old + ((1 - keep) * (new - old)).astype(old.dtype),
                state["ema"],
                {"params": params, "stats": stats},
            )
        return new_state, metrics

    places = meshes.shardings(jax.eval_shape(lambda: state), mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(places, NamedSharding(mesh, P())))


@functools.cache  # so that phases with the same model share one compilation
def predict_step(static: tree.Static, mesh: Mesh, view: augment.View, dtype, random: bool = False):
    """The jitted forward pass: (params, stats, pixels, sizes, seed, number) -> module.predict's arrays.

    It takes gathered canvases, so that one compilation serves every split.

    Args:
      static: of a module in eval mode; its `predict(images)` returns a dictionary of arrays [B, ...].
      random: whether images are augmented as in training, with draws of (seed, number of the batch,
        position), or get the evaluation crop.
    """
    spread = NamedSharding(mesh, feed.BATCH)

    def predict(params, stats, pixels, sizes, seed, number):
        if random:
            keys = example_keys(seed, number, 0, pixels.shape[0])
            images = random_views(keys, pixels, sizes, view, dtype)
        else:
            images = plain_views(pixels, sizes, view, dtype)
        images = jax.lax.with_sharding_constraint(images, spread)
        return tree.merge(static, params, stats).predict(images)

    return jax.jit(predict, out_shardings=NamedSharding(mesh, P()))
