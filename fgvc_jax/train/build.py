"""A module and a recipe to one compiled program, from shapes alone: no data, no arrays, any mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from fgvc_jax import mesh as meshes
from fgvc_jax.train import step as steps
from fgvc_jax.train import tree
from fgvc_jax.train.step import Recipe, State


class Program(NamedTuple):
    """The compiled parts that train a model on a mesh.

    Attributes:
      state: jax.ShapeDtypeStruct with its sharding for every array of the state.
      step: jitted (state, resident, batch, seed) -> (state, metrics).
      eval_static: the module in eval mode without its arrays, for `steps.predict_step`.
    """

    state: State
    step: Callable
    eval_static: tree.Static

    def trace(self, batch: dict[str, Any], resident: tuple = ()) -> Any:
        """The step traced on shapes (`jax.stages.Traced`): lower and compile it, or only look at it.

        Args:
          batch, resident: jax.ShapeDtypeStruct, as `batch_of` makes them, or arrays.

        Raises:
          UserError: a module, batch or image size that cannot work.
        """
        return self.step.trace(self.state, resident, batch, jax.ShapeDtypeStruct((), jnp.uint32))


def build(
    module: nnx.Module,
    recipe: Recipe,
    *,
    mesh: Mesh,
    gather: Callable,
    preprocess: Callable,
    dtype: DTypeLike | None = None,
) -> Program:
    """The program of a module, which may hold shapes alone (`nnx.eval_shape`) and is put into train mode.

    Args:
      module: in eval mode.
      mesh: the devices, which need not be there (a TPU topology).
      gather, preprocess, dtype: see `steps.train_step`.
    """
    eval_static, params, batch_stats = tree.split(module)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, batch_stats))
    state = jax.eval_shape(lambda weights: steps.init_state(*weights, recipe), shapes)
    module.train()
    if recipe.fix_batch_norm:
        steps.fix_batch_norm(module, recipe.freeze)
    step = steps.train_step(
        module, state, recipe, mesh=mesh, gather=gather, preprocess=preprocess, dtype=dtype
    )
    return Program(meshes.abstract(state, mesh), step, eval_static)


def new_state(program: Program, params: tree.Flat, batch_stats: tree.Flat, recipe: Recipe) -> State:
    """The state at step 0 on the program's mesh. Its buffers may be those of the given arrays."""
    state = steps.init_state(params, batch_stats, recipe)
    return jax.device_put(state, jax.tree.map(lambda x: x.sharding, program.state))


def batch_of(
    mesh: Mesh, examples: int, images: int, canvas: int, **columns: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch whose canvases are sent along with it.

    Args:
      examples: B, over all devices.
      images: V, how many images an example has.
      canvas: side of a canvas, pixels.
      columns: dtype by name of further columns [B], such as label.
    """
    place = NamedSharding(mesh, meshes.BATCH)

    def shape(dtype, *rest):
        return jax.ShapeDtypeStruct((examples, *rest), dtype, sharding=place)

    return {
        "pixels": shape(jnp.uint8, images, canvas, canvas, 3),
        "sizes": shape(jnp.int32, images, 2),
        **{name: shape(dtype) for name, dtype in columns.items()},
    }
