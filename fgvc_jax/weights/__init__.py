"""Pretrained weights from torch's world, exactly, or an error that says what does not fit."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fgvc_jax import backbones
from fgvc_jax.backbones.convnext import ConvNeXt
from fgvc_jax.backbones.efficientnet import EfficientNet
from fgvc_jax.backbones.features import Preprocessing
from fgvc_jax.backbones.resnet import ResNet
from fgvc_jax.backbones.swin import Swin
from fgvc_jax.backbones.vit import ViT
from fgvc_jax.errors import UserError
from fgvc_jax.weights import convnext, efficientnet, resnet, swin, vit
from fgvc_jax.weights.published import Published, locate
from fgvc_jax.weights.readers import Entry, explained, read
from fgvc_jax.weights.report import Report
from fgvc_jax.weights.tables import Layout, Table

__all__ = ["Report", "load_pretrained", "preprocessing_of", "wanted_arguments"]

TABLES = {
    ResNet: resnet.TABLE,
    EfficientNet: efficientnet.TABLE,
    ConvNeXt: convnext.TABLE,
    ViT: vit.TABLE,
    Swin: swin.TABLE,
}
CONTAINERS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "backbone.")
HEAD = re.compile(r"(fc|head|heads|head_dist|classifier)\.")
COUNTER = "num_batches_tracked"


def load_pretrained(
    module: nnx.Module, source: str, *, allow: Sequence[str] = ()
) -> tuple[nnx.Module, Report]:
    """Fills a backbone with published weights.

    Every array of the backbone must be found once, with its shape, and every key of the file must
    be used, except for the classifier's, which is left out. Position embeddings of another image
    size are resized. A state dict may lie under 'state_dict', 'model' or 'model_state_dict', and
    its keys may start with 'module.' or 'backbone.'. Half-precision weights are converted to the
    type of the parameters.

    Args:
      module: from `backbones.create`; updated in place, its `info.preprocessing` too where the
        config.json, the name or the layout tells that the weights were trained with another one.
      source: path of a .safetensors, .pth, .pt, .bin or .npz file, or what else `published.locate`
        takes: a folder, 'timm/resnet50.a1_in1k', 'torchvision/resnet50.IMAGENET1K_V2'.
      allow: regular expressions, matching in full, of paths of the backbone that may stay as they
        are ('layer4/.*') and of keys of the file that may stay unused ('neck.*').

    Returns:
      The module, and a report whose `.text` is for the log.

    Raises:
      UserError: no such file, a file that is broken or not allowed to be what it is, keys or shapes
        that do not match, values that are not finite. The module is then unchanged.
    """
    weights = open_weights(source)
    report, entries, _ = match(module, weights)
    _insist(report, allow)
    published, table = weights.published, TABLES[type(module)]
    state = nnx.state(module)
    variables = {"/".join(map(str, p)): v for p, v in nnx.to_flat_state(state)}
    shapes = _shapes(module)
    arrays = {}
    for ours, key in report.used.items():
        array = _axes(ours, _values(entries[key], key, published.path))
        if ours in report.resized:
            fit = table.resize(module, ours, array.shape, shapes[ours])
            array = fit(jnp.asarray(array, jnp.float32))
        arrays[ours] = jnp.asarray(array, variables[ours].get_raw_value().dtype)

    for ours, array in arrays.items():
        variables[ours].set_raw_value(array)
    nnx.update(module, state)
    module.info = dataclasses.replace(module.info, preprocessing=report.preprocessing)
    return module, report


def preprocessing_of(
    module: nnx.Module, source: str, *, allow: Sequence[str] = ()
) -> tuple[Preprocessing, Report]:
    """The preprocessing that goes with weights which `load_pretrained` would give to a backbone.

    Only keys and shapes are read, and a config.json: a file of any size is answered for at once. It
    is downloaded where it is not here yet; `published.find` says so beforehand.

    Args:
      module: from `backbones.create`, shapes (nnx.eval_shape) are enough; not changed.
      source, allow: as in `load_pretrained`.

    Returns:
      The preprocessing, and the report of what would be loaded.

    Raises:
      UserError: as `load_pretrained`, but for values, which are not looked at.
    """
    report, _, _ = match(module, open_weights(source))
    _insist(report, allow)
    return report.preprocessing, report


class StateDict(NamedTuple):
    """The arrays of a file.

    Attributes:
      form: what the file is, in words.
      entries: by key, without the prefixes that wrappers add.
      ignored: keys that hold no arrays.
    """

    published: Published
    form: str
    entries: dict[str, Entry]
    ignored: list[str]


def open_weights(source: str) -> StateDict:
    """Reads what a file of weights holds, but not yet the values. `source` as in `locate`."""
    published = locate(source)
    contents = read(published.path)
    tree, place = _state_dict(contents.tree, published.path)
    entries = {str(key): value for key, value in tree.items() if isinstance(value, Entry)}
    for prefix in PREFIXES:
        if all(key.startswith(prefix) or HEAD.match(key) for key in entries):
            entries = _renamed(entries, "^" + re.escape(prefix), "", published.path)
    ignored = [str(key) for key in tree if not isinstance(tree[key], Entry)]
    return StateDict(published, ", ".join([contents.format, *place]), entries, ignored)


def wanted_arguments(backbone: str, source: str) -> dict[str, Any]:
    """Arguments for `backbones.create`, with which a backbone computes as these weights want it.

    {'convention': 'torchvision'} for torchvision's Swin, {'eps': 1e-05} for timm's EfficientNets; {}
    for families that have one arithmetic. Only keys and shapes are read.

    Raises:
      UserError: as `load_pretrained`, where the file cannot be read or is of another family.
    """
    return arguments_for(backbone, open_weights(source))


def arguments_for(backbone: str, weights: StateDict) -> dict[str, Any]:
    """As `wanted_arguments`, of a file that is open."""
    table = TABLES[backbones.variant(backbone).net]
    entries = _renewed(table, weights)
    return _layout(table, entries, backbone, weights.published.path).wants(backbone)


def match(module: nnx.Module, weights: StateDict) -> tuple[Report, dict[str, Entry], Layout]:
    """The place of every array of a file in a backbone, which may have shapes alone (nnx.eval_shape).

    Returns:
      The report, the entries under the keys that it names, the layout.

    Raises:
      UserError: the file has no layout of this family.
    """
    published, table, name = weights.published, TABLES[type(module)], module.info.name
    entries = _renewed(table, weights)
    layout = _layout(table, entries, name, published.path)
    if layout.translate:
        entries = layout.translate(entries)
    report = Report(published.title, f"layout of {layout.name}, {weights.form}", name)
    report.ignored = list(weights.ignored)
    report.licence, report.architecture = published.licence, published.architecture
    report.remark = published.remark
    report.preprocessing = module.info.preprocessing._replace(
        **layout.preprocessing | published.preprocessing
    )
    report.refused = refusal(layout, module, published.architecture or published.path.name)
    _place(report, entries, module, table, layout)
    return report, entries, layout


def refusal(layout: Layout, module: nnx.Module, file: str) -> str:
    """Why a backbone would not compute with the weights of a layout as their library does; '' = it would."""
    name = module.info.name
    different = {
        argument: value
        for argument, value in layout.wants(name).items()
        if getattr(module, argument) != value
    }
    others = [
        f"these weights want {argument}={value}, the backbone was made with "
        f"{getattr(module, argument)}; give it the argument {argument}={value}"
        for argument, value in different.items()
    ]
    return layout.refuses(module, file) or "; ".join(others)


def _shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    variables = nnx.to_flat_state(nnx.state(module))
    return {"/".join(map(str, path)): v.get_raw_value().shape for path, v in variables}


def _state_dict(tree: Any, path: Path) -> tuple[dict, list[str]]:
    """The dictionary that holds the arrays, and in words where it was."""
    place = []
    while isinstance(tree, dict) and not any(isinstance(value, Entry) for value in tree.values()):
        inner = next((name for name in CONTAINERS if isinstance(tree.get(name), dict)), None)
        if inner is None:
            break
        tree, place = tree[inner], [*place, f"under {inner!r}"]
    if not isinstance(tree, dict) or not any(isinstance(value, Entry) for value in tree.values()):
        found = (
            ", ".join(f"{key!r:.80}" for key in list(tree)[:8])
            if isinstance(tree, dict)
            else type(tree).__name__
        )
        raise UserError(
            f"{path}: no weights found, neither at the top nor under {', '.join(CONTAINERS)}. "
            f"The file has: {found}."
        )
    for key in map(str, tree):
        if len(key) > 500 or not key.isprintable():
            raise UserError(f"{path}: refused: {key!r:.80} is no name of an array.")
    return tree, place


def _renewed(table: Table, weights: StateDict) -> dict[str, Entry]:
    """The entries under the keys that the library writes now."""
    entries = weights.entries
    for pattern, replacement in table.old_names:
        entries = _renamed(entries, pattern, replacement, weights.published.path)
    return entries


def _renamed(entries: dict[str, Entry], pattern: str, replacement: str, path: Path):
    names = {key: re.sub(pattern, replacement, key) for key in entries}
    if len(set(names.values())) < len(entries):
        old, new = next((old, new) for old, new in names.items() if old != new and new in entries)
        raise UserError(f"{path}: {old!r} and {new!r} name the same array.")
    return {names[key]: entry for key, entry in entries.items()}


def _layout(table: Table, entries: dict[str, Entry], name: str, path: Path) -> Layout:
    for layout in table.layouts:
        if layout.marker in entries and layout.when(entries):
            return layout
    known = " or ".join(f"{layout.marker!r} ({layout.name})" for layout in table.layouts)
    raise UserError(
        f"{path}: not weights of {name}: there is no {known}. The file's first keys: "
        f"{', '.join(list(entries)[:6])}."
    )


def _place(report: Report, entries, module: nnx.Module, table: Table, layout: Layout) -> None:
    """Puts every key of the file and every array of the backbone into its place of the report."""
    shapes = _shapes(module)
    keys = {ours: layout.key(ours) for ours in shapes}
    places = set(keys.values())
    for key, entry in entries.items():
        if key in places:
            continue
        if HEAD.match(key):
            report.head[key] = entry.shape
        elif key.endswith(COUNTER):
            report.ignored.append(key)
        else:
            report.unexpected[key] = entry.shape
    for ours, key in keys.items():
        here = _torch_shape(ours, shapes[ours])
        there = entries[key].shape if key in entries else None
        if there is None:
            report.missing[ours] = (key, here)
        elif table.resize(module, ours, there, here):
            report.used[ours] = key
            report.resized.append(ours)
        elif there == here:
            report.used[ours] = key
        else:
            report.misshaped[ours] = (key, there, here)


def _insist(report: Report, allow: Sequence[str]) -> None:
    """Raises where something that is not allowed to differ differs."""
    if all(any(re.fullmatch(pattern, path) for pattern in allow) for path in report.different):
        if report.refused:
            raise UserError(f"{report.source} does not fit {report.backbone}: {report.refused}.")
        return
    raise UserError(
        "\n".join(
            [
                f"{report.source} ({report.layout}) does not fit {report.backbone}:",
                *report.differences(),
                f"Its config.json says that it is {report.architecture!r}, set config.model.backbone."
                if report.architecture not in ("", report.backbone)
                else "Is it the file of another backbone? 'fgvc weights' says which it fits.",
                "config.model.allow=('layer4/.*', 'neck.*') takes patterns of names that may differ.",
            ]
        )
    )


def _values(entry: Entry, key: str, path: Path) -> np.ndarray:
    if not jnp.issubdtype(entry.dtype, jnp.floating):
        raise UserError(f"{path}: {key!r} holds {entry.dtype}, where floating point is needed.")
    with explained(path):
        array = entry.load()
    if not np.isfinite(array).all():
        raise UserError(f"{path}: {key!r} holds values that are not finite: the file is damaged.")
    return array


def _axes(path: str, array: np.ndarray) -> np.ndarray:
    """torch's order of axes into ours, the inverse of `torch_axes`."""
    if not path.endswith("kernel"):
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def torch_axes(path: str, array: np.ndarray) -> np.ndarray:
    """Our order of axes into torch's: [H, W, I, O] -> [O, I, H, W], [I, O] -> [O, I]."""
    if not path.endswith("kernel"):
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that our array has in a torch file."""
    if not path.endswith("kernel"):
        return shape
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]
