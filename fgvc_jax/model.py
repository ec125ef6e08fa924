"""A model as a description: model.json holds all that is needed, beside a checkpoint, to make it again."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from fgvc_jax import backbones, methods
from fgvc_jax.errors import UserError
from fgvc_jax.images.augment import View
from fgvc_jax.train import mesh as meshes
from fgvc_jax.train import tree
from fgvc_jax.train.checkpoint import Checkpoints, pick


@dataclasses.dataclass(frozen=True)
class Description:
    """Everything but the weights.

    Attributes:
      backbone, backbone_arguments: a name of `fgvc_jax.backbones` and its arguments.
      method, method_arguments: a name of `fgvc_jax.methods` and its arguments.
      classes: the class table; the position is the label.
      class_ids: the original id of each class, where the data have ids besides names.
      view: the preprocessing.
      canvas: images with a longer side are shrunk to it first.
      dtype, param_dtype: of the computation, of parameters and statistics.
      remat: whether training computes each block again for the gradient, to save memory.
    """

    backbone: str
    method: str
    classes: tuple[str, ...]
    view: View
    canvas: int
    dtype: str = "float32"
    param_dtype: str = "float32"
    backbone_arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    method_arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    class_ids: tuple[str, ...] = ()
    remat: bool = False

    def build(self, seed: int = 0) -> nnx.Module:
        """The module in eval mode, with fresh weights drawn from the seed."""
        types = {"dtype": jnp.dtype(self.dtype), "param_dtype": jnp.dtype(self.param_dtype)}
        backbone = backbones.create(
            self.backbone,
            image_size=self.view.size,
            rngs=nnx.Rngs(seed),
            remat=self.remat,
            **types,
            **self.backbone_arguments,
        )
        module = methods.create(
            self.method,
            backbone,
            len(self.classes),
            rngs=nnx.Rngs(seed + 1),  # so that a head does not depend on the depth of its backbone
            **types,
            **self.method_arguments,
        )
        module.eval()
        return module

    def save(self, path: str | os.PathLike) -> None:
        content = dataclasses.asdict(self) | {"view": self.view._asdict()}
        Path(path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def load_description(path: str | os.PathLike) -> Description:
    """Reads model.json; UserError where it is missing or made by an incompatible version."""
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: is its folder a finished training phase?"
        ) from None

    def tuples(value):
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    try:
        view = View(**{key: tuples(value) for key, value in content.pop("view").items()})
        content["classes"] = tuple(content["classes"])
        content["class_ids"] = tuple(content.get("class_ids", ()))  # older models have none
        return Description(**content | {"view": view})
    except TypeError as error:
        raise UserError(f"{path} was written by another version of fgvc_jax: {error}") from None


def trained(
    folder: str | os.PathLike, which: str, mesh: Mesh
) -> tuple[Description, nnx.Module, dict]:
    """What a training phase has left in its folder: (description, *`restore`)."""
    description = load_description(Path(folder, "model.json"))
    return description, *restore(description, folder, which, mesh)


def restore(
    description: Description, folder: str | os.PathLike, which: str, mesh: Mesh
) -> tuple[nnx.Module, dict]:
    """The model of a training phase with the weights of its checkpoint.

    Args:
      description: of the phase, its model.json.
      folder: of the phase.
      which: the checkpoint, 'best' by validation or 'last'.

    Returns:
      (module in eval mode with shapes in place of arrays, {'params', 'stats'} on the mesh).

    Raises:
      UserError: where there is no checkpoint.
    """
    module = nnx.eval_shape(description.build)
    _, params, stats = tree.split(module)
    places = meshes.abstract({"params": params, "stats": stats}, mesh)
    checkpoints = Checkpoints(Path(folder, "checkpoints"))
    weights = checkpoints.restore_weights(pick(checkpoints, which), places)
    checkpoints.close()
    return module, weights
