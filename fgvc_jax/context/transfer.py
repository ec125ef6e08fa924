"""A run that starts from an earlier run's model, or from a checkpoint of a method's authors."""

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fgvc_jax import mesh as meshes
from fgvc_jax import model
from fgvc_jax.backbones import Preprocessing
from fgvc_jax.errors import UserError
from fgvc_jax.model import Specification
from fgvc_jax.train import tree
from fgvc_jax.trained import Found, find
from fgvc_jax.weights import originals

log = logging.getLogger(__name__)


@functools.cache
def earlier(run: str) -> Found:
    """The model of an earlier run: its best classifier, or, of a phase's folder, that phase's best.

    Raises:
      UserError: where there is none.
    """
    folder = Path(run).expanduser().resolve()
    if (folder / "model.json").exists():
        return Found(folder, "best", model.load_specification(folder / "model.json"))
    return find(folder)


def backbone_arguments(run: str, backbone: str, arguments: dict[str, Any], usual: dict) -> dict:
    """The backbone's arguments: the given ones, and where these are the usual ones the earlier run's.

    Raises:
      UserError: the earlier run has another backbone.
    """
    theirs = earlier(run).specification
    if theirs.backbone != backbone:
        raise UserError(
            f"config.init.run = {run!r} holds a {theirs.backbone}, and "
            f"config.model.backbone is {backbone!r}. "
            f"Set config.model.backbone={theirs.backbone}."
        )
    result = dict(arguments)
    for name, value in theirs.backbone_arguments.items():
        # Stochastic depth is how a net is trained, not what it is.
        if name != "stochastic_depth" and result[name] == usual[name]:
            result[name] = tuple(value) if isinstance(value, list) else value
    return result


def preprocessing(run: str, usual: Preprocessing) -> Preprocessing:
    """What the earlier run's images were normalised with, in place of the usual."""
    view = earlier(run).specification.view
    return usual._replace(mean=view.mean, std=view.std, interpolation=view.interpolation)


def from_run(module: nnx.Module, specification: Specification, run: str, mesh: Mesh) -> nnx.Module:
    """The module with the weights of an earlier run.

    Arrays with the path and shape of one there are taken. Of an array with an axis over the classes, such as
    a head's kernel, those of the classes that both have, by name; the other classes' stay fresh.

    Raises:
      UserError: an array of the backbone has no counterpart.
    """
    found = earlier(run)
    _, weights = model.restore(found.specification, found.folder, found.which, mesh)
    static, *ours = tree.split(module)
    theirs = weights["params"] | weights["batch_stats"]
    axes = class_axes(specification)
    same_classes = specification.classes == found.specification.classes
    taken, shared = 0, shared_classes(found.specification.classes, specification.classes)

    def take(path: str, fresh):
        nonlocal taken
        old, axis = theirs.get(path), axes.get(path)
        if old is not None and axis is not None and not same_classes:
            merged = _by_class(meshes.to_host(old), np.asarray(fresh), axis, *shared)
            taken += merged is not None
            return fresh if merged is None else jnp.asarray(merged, fresh.dtype)
        if old is not None and old.shape == fresh.shape:
            taken += 1
            return jnp.asarray(old, fresh.dtype)
        if path.startswith("backbone/"):
            shape = None if old is None else old.shape
            raise UserError(
                f"config.init.run = {run!r}: {path} is {shape} there and {fresh.shape} here. Both runs need "
                "one backbone with the same arguments."
            )
        return fresh

    ours = [{path: take(path, x) for path, x in arrays.items()} for arrays in ours]
    log.info(
        "  starts from %s: %s arrays taken, %s fresh; of %s classes %s are known by name",
        found.folder,
        taken,
        sum(map(len, ours)) - taken,
        len(specification.classes),
        len(shared[0]),
    )
    return tree.merge(static, *ours)


def from_file(module: nnx.Module, specification: Specification, source: str) -> nnx.Module:
    """The module with the weights of a checkpoint of the method's authors; see `originals.load`.

    Where the checkpoint has another number of classes, what is made for the classes stays fresh.
    """
    axes = class_axes(specification)
    arrays, text = originals.load(module, specification.method, source, may_differ=set(axes))
    log.info("  %s", text)
    static, *ours = tree.split(module)
    ours = [
        {path: jnp.asarray(arrays.get(path, x), x.dtype) for path, x in one.items()} for one in ours
    ]
    return tree.merge(static, *ours)


def class_axes(specification: Specification) -> dict[str, int]:
    """The axis over the classes of every array that has one: what grows where a class is added."""
    more = dataclasses.replace(specification, classes=(*specification.classes, "one more"))
    now, then = (tree.weights(nnx.eval_shape(s.build)) for s in (specification, more))
    axes = {}
    for kind, arrays in now.items():
        for path, array in arrays.items():
            grown = [a != b for a, b in zip(array.shape, then[kind][path].shape, strict=True)]
            if any(grown):
                axes[path] = grown.index(True)
    return axes


def shared_classes(theirs: tuple[str, ...], ours: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Positions there and here of the classes whose names both have."""
    place = {name: number for number, name in enumerate(theirs)}
    both = [(place[name], number) for number, name in enumerate(ours) if name in place]
    return [there for there, _ in both], [here for _, here in both]


def _by_class(old: np.ndarray, fresh: np.ndarray, axis: int, there, here) -> np.ndarray | None:
    """Fresh, with the old values of the classes that both have; None where the other axes differ."""
    if (
        old.ndim != fresh.ndim
        or np.delete(old.shape, axis).tolist() != np.delete(fresh.shape, axis).tolist()
    ):
        return None
    merged = np.moveaxis(fresh.copy(), axis, 0)
    merged[here] = np.moveaxis(old, axis, 0)[there]
    return np.moveaxis(merged, 0, axis)
