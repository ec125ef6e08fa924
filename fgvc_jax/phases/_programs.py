"""The programs that phases run for batch after batch, as shapes, for `fgvc plan`."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from fgvc_jax import mesh as meshes
from fgvc_jax.context.models import Models
from fgvc_jax.model import Specification
from fgvc_jax.phases._base import Pass
from fgvc_jax.train import tree
from fgvc_jax.train.build import Program, batch_of


def training(
    program: Program, models: Models, *, key: str, batch: int, images: int, unit: int, same: str
) -> Pass:
    """The train step; see `Pass`. Images: of an example."""

    def trace(examples: int, canvas: int, resident: tuple = ()):
        columns = batch_of(models.mesh, examples, images, canvas, label=jnp.int32)
        if resident:
            place = NamedSharding(models.mesh, meshes.BATCH)
            index = jax.ShapeDtypeStruct((examples, images), jnp.int32, sharding=place)
            columns = {"label": columns["label"], "index": index}
        return program.trace(columns, resident)

    return Pass("train step", key, batch, ("train",) * images, unit, trace, ("train", same))


def forward(
    model: Specification,
    models: Models,
    *,
    key: str,
    batch: int,
    splits: tuple[str, ...],
    random: bool = False,
) -> Pass:
    """The forward pass of a model in use; a program of its own gathers the canvases."""
    module = nnx.eval_shape(model.build)
    static, params, batch_stats = tree.split(module)
    params, batch_stats = meshes.abstract((params, batch_stats), models.mesh)

    def trace(examples: int, canvas: int, resident: tuple = ()):
        del resident
        sent = batch_of(models.mesh, examples, 1, canvas)
        pixels, sizes = sent["pixels"], sent["sizes"]
        step = models.predictor(static, random)
        return step.trace(params, batch_stats, pixels, sizes, np.uint32(0), 0)

    same = ("forward", repr(model), random, batch)
    return Pass("forward pass", key, batch, splits, 1, trace, same)
