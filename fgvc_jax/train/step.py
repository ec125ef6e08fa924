"""The train step and the predict step: pure functions, jitted over a mesh.

    gather canvases -> preprocess -> for each update: forward, loss, backward, optimizer

Randomness is fold_in(seed, step, update, position in the global batch): a draw belongs to an example,
whatever device holds it. The images are drawn with update 0, the method's own draws with 1, 2, ...
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from fgvc_jax import mesh as meshes
from fgvc_jax.errors import UserError
from fgvc_jax.layers.norm import BatchNorm
from fgvc_jax.methods._base import Context
from fgvc_jax.train import plateau, tree

# step (int32), params, batch_stats (flat dictionaries), opt, plateau (see fgvc_jax.train.plateau), and with a
# moving average of the weights ema: {'params', 'batch_stats'}
State = dict[str, Any]

_WHOLE = 2**32 - 1  # folded into a key in place of a position, for the draw of a whole update


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a module is trained.

    Attributes:
      optimizer: see `fgvc_jax.train.optim.optimizer`; the learning rate is not in it.
      learning_rate: step (traced int32) -> rate.
      rate_scales: factor by parameter path; 1 where a path is absent.
      freeze: patterns of parameter paths that get no gradient.
      fix_batch_norm: BatchNorm whose scale is frozen keeps its running statistics in training.
      wrap: around the gradient function, where SAM and accumulation go.
      mix: (key, images, labels) -> (images, columns of the batch), such as `fgvc_jax.images.mix.mix`.
      ema: decay of the moving average of parameters and statistics, shorter in the first steps, where it is
        (1 + step) / (10 + step); 0 = no average.
      total_steps: length of the phase.
      steps_per_epoch: how many steps pass over the examples once.
    """

    optimizer: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    total_steps: int
    steps_per_epoch: float
    rate_scales: dict[str, float] = dataclasses.field(default_factory=dict)
    freeze: Sequence[str] = ()
    fix_batch_norm: bool = True
    wrap: Callable[[Callable], Callable] = lambda gradient: gradient
    mix: Callable | None = None
    ema: float = 0.0

    def trains(self, path: str) -> bool:
        return not tree.matches(self.freeze, path)


def update_key(seed: jax.Array, step: jax.Array, update: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), update)


def example_keys(seed: jax.Array, step: jax.Array, update: int, batch: int) -> jax.Array:
    """A key for each position of the global batch: [batch]."""
    key = update_key(seed, step, update)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(jnp.arange(batch))


def fix_batch_norm(module: nnx.Module, freeze: Sequence[str]) -> None:
    """BatchNorm whose scale is frozen keeps its running statistics, in training too."""
    for path, layer in nnx.iter_modules(module):
        if isinstance(layer, BatchNorm):
            layer.fixed = tree.matches(freeze, "/".join(map(str, (*path, "scale"))))


def init_state(params: tree.Flat, batch_stats: tree.Flat, recipe: Recipe) -> State:
    trainable = {path: p for path, p in params.items() if recipe.trains(path)}
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "batch_stats": batch_stats,
        "opt": recipe.optimizer.init(trainable),
        "plateau": jax.tree.map(jnp.asarray, plateau.start()),
    }
    if (
        recipe.ema
    ):  # a copy: the step gives away the buffers of its state, each of which may appear once
        state["ema"] = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
    return state


def train_step(
    module: nnx.Module,
    state: State,
    recipe: Recipe,
    *,
    mesh: Mesh,
    gather: Callable,
    preprocess: Callable,
    dtype: DTypeLike | None = None,
) -> Callable:
    """The jitted step: (state, resident, batch, seed) -> (state, metrics), the state donated.

    The seed is an argument, so that runs with several seeds share one compilation.

    Args:
      module: a method around its backbone, in train mode; see `fgvc_jax.methods._base.Method.updates`.
      state: for its shapes.
      gather: (resident, batch) -> (pixels, sizes) of the batch's images, such as `fgvc_jax.data.feed.gather`.
      preprocess: (keys [B], pixels, sizes) -> images [B, ...], such as
        `fgvc_jax.images.batch.random_views`.
      dtype: of the computation, to which kernels that are split over devices are cast before they are
        gathered; None = they are gathered as they are kept.
    """
    static, _, _ = tree.split(module)
    spread = NamedSharding(mesh, meshes.BATCH)
    scales = recipe.rate_scales

    def one_update(number: int) -> Callable:
        # Each update is an inner jit: tracing several in one function grows faster than their number.
        @jax.jit
        def apply(params, batch_stats, opt, batch, carry, key, keys, step, lr):
            frozen = {path: p for path, p in params.items() if not recipe.trains(path)}
            trainable = {path: p for path, p in params.items() if path not in frozen}
            epoch = (step / recipe.steps_per_epoch).astype(jnp.float32)
            progress = step / recipe.total_steps

            def loss(trainable, inputs):
                whole = meshes.gathered(frozen | trainable, mesh, dtype)
                merged = tree.merge(static, whole, batch_stats)
                context = Context(key, inputs["keys"], step, epoch, progress)
                update = merged.updates[number]
                value, carry, metrics = update(inputs["batch"], inputs["carry"], context)
                _check_output(value, carry, metrics, len(inputs["keys"]), type(module), number)
                aux = {"batch_stats": tree.batch_stats(merged), "carry": carry, "metrics": metrics}
                return value, aux

            gradient = recipe.wrap(jax.value_and_grad(loss, has_aux=True))
            inputs = {"batch": batch, "carry": carry, "keys": keys}
            (value, aux), grads = gradient(trainable, inputs)
            updates, opt = recipe.optimizer.update(grads, opt, trainable)
            updated = {
                path: (p - (lr * scales.get(path, 1.0)).astype(p.dtype) * updates[path]).astype(
                    p.dtype
                )
                for path, p in trainable.items()
            }
            metrics = aux["metrics"] | {"loss": value, "grad_norm": optax.global_norm(grads)}
            return frozen | updated, aux["batch_stats"], opt, aux["carry"], metrics

        return apply

    applies = [one_update(number) for number in range(len(module.updates))]

    def step(state: State, resident, batch, seed):
        pixels, sizes = gather(resident, batch)
        now, examples = state["step"], pixels.shape[0]
        images = preprocess(example_keys(seed, now, 0, examples), pixels, sizes)
        columns = {name: c for name, c in batch.items() if name not in ("index", "pixels", "sizes")}
        if recipe.mix:
            key = jax.random.fold_in(update_key(seed, now, 0), _WHOLE)
            images, targets = recipe.mix(key, images, columns["label"])
            columns |= targets
        columns["image"] = jax.lax.with_sharding_constraint(images, spread)
        params, batch_stats, opt = state["params"], state["batch_stats"], state["opt"]
        lr = recipe.learning_rate(now) * state["plateau"]["rate_factor"]
        carry, metrics = {}, {}
        for number, apply in enumerate(applies):
            key = jax.random.fold_in(update_key(seed, now, 1 + number), _WHOLE)
            keys = example_keys(seed, now, 1 + number, examples)
            params, batch_stats, opt, carry, new = apply(
                params, batch_stats, opt, columns, carry, key, keys, now, lr
            )
            suffix = f"_{number + 1}" if len(applies) > 1 else ""
            metrics |= {name + suffix: value for name, value in new.items()}
        metrics["learning_rate"] = lr
        new_state = state | {
            "step": now + 1,
            "params": params,
            "batch_stats": batch_stats,
            "opt": opt,
        }
        if recipe.ema:
            share = 1 - jnp.minimum(recipe.ema, (1 + now) / (10 + now))
            weights = {"params": params, "batch_stats": batch_stats}
            average = optax.incremental_update(weights, state["ema"], share)
            new_state["ema"] = jax.tree.map(
                lambda x, old: x.astype(old.dtype), average, state["ema"]
            )
        return new_state, metrics

    places = meshes.shardings(jax.eval_shape(lambda state: state, state), mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(places, NamedSharding(mesh, P())))


def _check_output(loss, carry, metrics, examples: int, method: type, number: int) -> None:
    """Raises UserError where an update breaks the contract of methods; runs while it is traced."""
    where = f"update {number + 1} of {method.__module__}"
    if jnp.shape(loss):
        raise UserError(f"{where}: the loss has shape {jnp.shape(loss)}; it must be a scalar.")
    for name, value in metrics.items():
        if jnp.shape(value):
            raise UserError(
                f"{where}: metric {name!r} has shape {jnp.shape(value)}; give a scalar."
            )
    for path, value in jax.tree.leaves_with_path(carry):
        shape = jnp.shape(value)
        if shape and shape[0] != examples:
            raise UserError(
                f"{where}: carry{jax.tree_util.keystr(path)} has shape {shape}. An array in the carry has a "
                f"leading axis of {examples}, the examples that the update was given, or is a scalar."
            )


def predict_step(
    static: tree.Static, mesh: Mesh, preprocess: Callable, dtype: DTypeLike | None = None
) -> Callable[..., dict[str, jax.Array]]:
    """The jitted forward pass: (params, batch_stats, pixels, sizes, seed, number) -> module.predict's arrays.

    It takes gathered canvases, so that one compilation serves every split.

    Args:
      static: of a module in eval mode; its `predict(images)` returns a dictionary of arrays [B, ...].
      preprocess: (keys [B], pixels, sizes) -> images; the keys are drawn from seed, number of the batch
        and position.
      dtype: of the computation, as for `train_step`.
    """
    spread = NamedSharding(mesh, meshes.BATCH)

    def predict(params, batch_stats, pixels, sizes, seed, number):
        images = preprocess(example_keys(seed, number, 0, pixels.shape[0]), pixels, sizes)
        images = jax.lax.with_sharding_constraint(images, spread)
        whole = meshes.gathered(params, mesh, dtype)
        return tree.merge(static, whole, batch_stats).predict(images)

    return jax.jit(predict, out_shardings=NamedSharding(mesh, P()))


def predict_views_step(
    static: tree.Static,
    mesh: Mesh,
    preprocess: Callable,
    places: jax.Array,
    dtype: DTypeLike | None = None,
) -> Callable[..., dict[str, jax.Array]]:
    """As `predict_step`, of several views one after the other: outputs [V, B, ...]; nothing is drawn.

    Args:
      preprocess: (pixels, sizes, place) -> images.
      places: [V, ...], what `preprocess` is given for each view.
    """
    spread = NamedSharding(mesh, meshes.BATCH)

    def predict(params, batch_stats, pixels, sizes, seed, number):
        del seed, number
        whole = meshes.gathered(params, mesh, dtype)

        def one(place):
            images = preprocess(pixels, sizes, place)
            images = jax.lax.with_sharding_constraint(images, spread)
            return tree.merge(static, whole, batch_stats).predict(images)

        return jax.lax.map(one, places)  # one program for all views, one view in memory

    return jax.jit(predict, out_shardings=NamedSharding(mesh, P()))
