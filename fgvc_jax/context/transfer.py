"""A run that starts from an earlier run's model, or from a checkpoint of a method's authors."""

import dataclasses
import functools
import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgvc_jax import mesh as meshes
from fgvc_jax import model
from fgvc_jax.backbones import Preprocessing
from fgvc_jax.data.manifest import Manifest
from fgvc_jax.errors import UserError
from fgvc_jax.model import Specification
from fgvc_jax.train import tree
from fgvc_jax.trained import Found, find
from fgvc_jax.weights import TABLES, originals

log = logging.getLogger(__name__)

NETS = ("backbone/", "second/")  # all else is a head


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
            result[name] = _tuples(value)
    return result


def _tuples(value: Any) -> Any:
    """As it was before JSON made lists of it."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def preprocessing(run: str, usual: Preprocessing) -> Preprocessing:
    """What the earlier run's images were normalised with, in place of the usual."""
    view = earlier(run).specification.view
    return usual._replace(mean=view.mean, std=view.std, interpolation=view.interpolation)


def second_arguments(run: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A method's arguments, those of its second backbone the earlier run's, where that had the same one."""
    theirs = earlier(run).specification.method_arguments
    if not arguments.get("second") or theirs.get("second") != arguments["second"]:
        return arguments
    names = ("second_arguments", "second_scale", "second_shift")
    return arguments | {name: _tuples(theirs[name]) for name in names}


def check_images(run: str, manifest: Manifest) -> None:
    """Raises UserError where the earlier run was trained on images that are to test this one.

    Warns where it was trained on those that are to choose checkpoints.
    """
    home = next((p for p in earlier(run).folder.parents if (p / "manifest.json").exists()), None)
    if home is None:
        return
    content = json.loads((home / "manifest.json").read_text(errors="surrogateescape"))
    if not manifest.root or content.get("root") != manifest.root:
        return
    seen = set(content["splits"]["train"])
    for name in {"val", "test"} & manifest.splits.keys():
        files = manifest.splits[name].files
        again = len(seen.intersection(files))
        said = (
            f"config.init.run = {run!r} was trained on {again:,} of the {len(files):,} images of this run's "
            f"{name} split."
        )
        if again and name == "test":
            raise UserError(f"{said} Its accuracy would mean nothing: use the same split in both.")
        if again:
            log.warning("warning: %s What they choose is too optimistic.", said)


def from_run(
    module: nnx.Module,
    specification: Specification,
    run: str,
    mesh: Mesh,
    nets: tuple[str, ...],
) -> nnx.Module:
    """The module with the weights of an earlier run.

    Arrays with the path and shape of one there are taken; position embeddings of another image size are
    resized. Of an array with an axis over the classes, such as a head's kernel, those of the classes that
    both have are taken, by name; the other classes' stay fresh. Heads are taken of the same method only.

    Args:
      nets: beginnings of paths, such as 'backbone/', of which every array has to be found.

    Raises:
      UserError: an array of a net has no counterpart.
    """
    found = earlier(run)
    _, weights = model.restore(found.specification, found.folder, found.which, mesh)
    static, *ours = tree.split(module)
    theirs = weights["params"] | weights["batch_stats"]
    axes = class_axes(specification)
    same_classes = specification.classes == found.specification.classes
    same_method = specification.method == found.specification.method
    shared = shared_classes(found.specification.classes, specification.classes)

    def take(path: str, fresh) -> jax.Array | None:
        """The array for a path; None = the fresh one."""
        old, axis, net = theirs.get(path), axes.get(path), path.startswith(NETS)
        if old is None or not (net or same_method):
            return None
        if axis is not None and not same_classes:
            return _by_class(meshes.to_host(old), np.asarray(fresh), axis, *shared)
        if old.shape == fresh.shape:
            return old
        if not net:
            return None
        part, _, name = path.partition("/")
        part = getattr(module, part)
        fit = TABLES[type(part)].resize(part, name, old.shape, fresh.shape)
        return fit(jnp.asarray(old, jnp.float32)) if fit else None

    taken = 0
    for arrays in ours:
        for path, fresh in arrays.items():
            value = take(path, fresh)
            if value is not None:
                arrays[path], taken = jnp.asarray(value, fresh.dtype), taken + 1
            elif path.startswith(nets):
                shape = theirs[path].shape if path in theirs else "missing"
                raise UserError(
                    f"config.init.run = {run!r}: {path} is {shape} there and {fresh.shape} here. Both runs "
                    "need the same nets with the same arguments."
                )
    log.info(
        "  starts from %s: %s arrays taken, %s fresh; of %s classes %s are known by name",
        found.folder,
        taken,
        sum(map(len, ours)) - taken,
        len(specification.classes),
        len(shared[0]),
    )
    return tree.merge(static, *ours)


def without_pretrained(config: ConfigDict) -> ConfigDict:
    """The config without the weights for which `init` has others, and with the earlier run's whole path."""
    init, settings = config.init, config.model
    if init.run:
        init.run = str(Path(init.run).expanduser().resolve())
        settings.pretrained = ""
        if earlier(init.run).specification.method_arguments.get("second"):
            settings.second_pretrained = ""
    elif init.file:
        settings.pretrained = settings.second_pretrained = ""
    return config


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


def check_file(specification: Specification, source: str) -> None:
    """Raises what `from_file` would, but for values that are not finite: only names and shapes are read."""
    module, axes = nnx.eval_shape(specification.build), class_axes(specification)
    originals.match(module, specification.method, source, may_differ=set(axes))


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
    """Fresh with the old values of the classes that both have; None without any, or for other shapes."""
    if (
        not there
        or old.ndim != fresh.ndim
        or np.delete(old.shape, axis).tolist() != np.delete(fresh.shape, axis).tolist()
    ):
        return None
    merged = np.moveaxis(fresh.copy(), axis, 0)
    merged[here] = np.moveaxis(old, axis, 0)[there]
    return np.moveaxis(merged, 0, axis)
