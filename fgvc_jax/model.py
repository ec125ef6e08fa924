"""A model as a specification: model.json holds all that is needed, beside a checkpoint, to make it again."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from fgvc_jax import backbones, files, methods
from fgvc_jax import mesh as meshes
from fgvc_jax.errors import UserError
from fgvc_jax.images.batch import plain_views, random_views
from fgvc_jax.images.tta import placed_views, places
from fgvc_jax.images.view import View
from fgvc_jax.layers import remat
from fgvc_jax.layers.attention import Attention
from fgvc_jax.train import tree
from fgvc_jax.train.checkpoint import Checkpoints, pick
from fgvc_jax.train.step import predict_step, predict_views_step


@dataclasses.dataclass(frozen=True)
class Specification:
    """All of a model but its weights.

    Attributes:
      backbone, backbone_arguments: a name of `fgvc_jax.backbones` and its arguments.
      method, method_arguments: a name of `fgvc_jax.methods` and its arguments.
      classes: the class table; the position is the label.
      class_ids: the original id of each class, where the data have ids besides names.
      view: the preprocessing.
      canvas: images with a longer side are shrunk to it first.
      dtype, param_dtype: of the computation, of parameters and statistics.
      remat: what training computes again for the gradient, to save memory; see `fgvc_jax.layers.remat.call`.
      attention: the form of transformers' attention; see `fgvc_jax.layers.attention.Attention`.
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
    remat: str = "none"
    attention: str = "auto"

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
            image_size=self.view.size,
            rngs=nnx.Rngs(seed + 1),  # so that a head does not depend on the depth of its backbone
            **types,
            **self.method_arguments,
        )
        module.set_attributes(Attention, raise_if_not_found=False, kind=self.attention)
        module.eval()
        return module

    def save(self, path: str | os.PathLike) -> None:
        content = dataclasses.asdict(self) | {"view": self.view._asdict()}
        files.write_json(path, content)

    @classmethod
    def read(cls, content: dict[str, Any], where: str | os.PathLike) -> "Specification":
        """From the values of a JSON file, which `where` names in the UserError of another version's."""

        def tuples(value):
            return tuple(map(tuples, value)) if isinstance(value, list) else value

        try:
            view = View(**{key: tuples(value) for key, value in content["view"].items()})
            ids = tuple(content.get("class_ids", ()))  # older models have none
            content = content | {"remat": remat.kind_of(content.get("remat", "none"))}
            names = {"classes": tuple(content["classes"]), "class_ids": ids}
            return cls(**content | names | {"view": view})
        except (TypeError, KeyError) as error:
            raise UserError(
                f"{where} was written by another version of fgvc_jax: {error}"
            ) from None


def load_specification(path: str | os.PathLike) -> Specification:
    """Reads model.json; UserError where it is missing or made by an incompatible version."""
    try:
        content = json.loads(Path(path).read_text("utf-8", "surrogateescape"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: is its folder a finished training phase?"
        ) from None
    return Specification.read(content, path)


def read_done(folder: str | os.PathLike) -> dict[str, Any]:
    """The content of a phase's DONE.json; {} where it is not finished."""
    path = Path(folder, "DONE.json")
    return json.loads(path.read_text()) if path.exists() else {}


def trained(
    folder: str | os.PathLike, which: str, mesh: Mesh
) -> tuple[Specification, nnx.Module, dict]:
    """The result of a training phase in its folder: (specification, *`restore`)."""
    specification = load_specification(Path(folder, "model.json"))
    return specification, *restore(specification, folder, which, mesh)


def restore(
    specification: Specification, folder: str | os.PathLike, which: str, mesh: Mesh
) -> tuple[nnx.Module, dict]:
    """The model of a training phase with the weights of its checkpoint.

    Args:
      specification: of the phase, its model.json.
      folder: of the phase.
      which: the checkpoint, 'best' by validation or 'last'.

    Returns:
      (module in eval mode with shapes in place of arrays, {'params', 'batch_stats'} on the mesh).

    Raises:
      UserError: where there is no checkpoint.
    """
    module = nnx.eval_shape(specification.build)
    places = meshes.abstract(tree.weights(module), mesh)
    checkpoints = Checkpoints(Path(folder, "checkpoints"))
    weights = checkpoints.restore_weights(pick(checkpoints, which), places)
    checkpoints.close()
    return module, weights


@functools.cache  # so that phases with the same model share one compilation
def predictor(
    static: tree.Static,
    mesh: Mesh,
    view: View,
    dtype: jnp.dtype,
    random: bool = False,
    tta: str = "",
) -> Callable[..., dict[str, jax.Array]]:
    """The jitted forward pass of a module in eval mode; see `fgvc_jax.train.step.predict_step`.

    Args:
      random: images are augmented as in training, instead of cropped as for evaluation.
      tta: one of `fgvc_jax.images.tta.KINDS`: every output has a leading axis of views then.
    """
    if tta:
        views = functools.partial(placed_views, view=view, dtype=dtype)
        return predict_views_step(static, mesh, views, places(tta), dtype)

    def preprocess(keys, pixels, sizes):
        if random:
            return random_views(keys, pixels, sizes, view, dtype)
        return plain_views(pixels, sizes, view, dtype)

    return predict_step(static, mesh, preprocess, dtype)


@functools.cache
def comparing(static: tree.Static) -> Callable[..., jax.Array]:
    """The jitted (weights, queries, neighbours) -> logit of "same class" [N] of a comparator."""
    return jax.jit(lambda weights, q, n: tree.merge(static, **weights).same(q, n))
