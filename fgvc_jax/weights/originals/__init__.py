"""Checkpoints of the methods' authors: one file a method, with the names of its arrays.

Each has `key(path) -> key`, from the path of an array of ours ('backbone/layer1/0/conv1/kernel',
'head/kernel') to the authors' name, and `UNUSED`, patterns of keys of the file that have no place in ours.
"""

import importlib
from collections.abc import Set
from typing import NamedTuple

import numpy as np
from flax import nnx

from fgvc_jax import modules
from fgvc_jax.errors import UserError, did_you_mean
from fgvc_jax.train import tree
from fgvc_jax.weights import COUNTER, StateDict, open_weights
from fgvc_jax.weights.readers import explained


def names() -> list[str]:
    """The methods whose authors' checkpoints can be read."""
    return modules.names("weights.originals")


class Match(NamedTuple):
    """The places of a checkpoint's arrays.

    Attributes:
      file: what was read.
      keys: our path -> key of the file.
      left: our paths whose array has another shape, which may be.
    """

    file: StateDict
    keys: dict[str, str]
    left: list[str]


def match(
    module: nnx.Module, method: str, source: str, *, may_differ: Set[str] = frozenset()
) -> Match:
    """Finds every array of a method in a checkpoint, by name and shape; no values are read.

    Args:
      module: the method around its backbone; shapes are enough.
      method: its name.
      source: a state dict, as `fgvc_jax.weights.load_pretrained` takes it. A whole pickled module cannot be
        read: files from strangers are data.
      may_differ: paths whose shape may be another (what is made for the classes).

    Raises:
      UserError: no mapping for the method, an array that is missing, unexpected or of another shape.
    """
    if method not in names():
        raise UserError(
            f"config.init.file is for the methods {', '.join(names())}; this one is {method!r}. For weights "
            "of a backbone use config.model.pretrained."
        )
    layout = importlib.import_module(f"fgvc_jax.weights.originals.{method}")
    file = open_weights(source)
    path, entries = file.published.path, file.entries
    ours = {p: x.shape for arrays in tree.weights(module).values() for p, x in arrays.items()}
    keys = {ours_path: layout.key(ours_path) for ours_path in ours}
    missing = [key for key in keys.values() if key not in entries]
    unused = (*layout.UNUSED, rf".*{COUNTER}")
    places = set(keys.values())
    unexpected = [key for key in entries if key not in places and not tree.matches(unused, key)]
    if missing or unexpected:
        raise UserError(
            f"{path} is no checkpoint of {method!r} on this backbone: {len(missing)} arrays are missing"
            f"{f' (the first: {missing[0]!r}{did_you_mean(missing[0], entries)})' if missing else ''}, "
            f"{len(unexpected)} are unexpected{f' (as {sorted(unexpected)[0]!r})' if unexpected else ''}."
        )
    left = []
    for ours_path, key in keys.items():
        shape = _our_shape(ours_path, entries[key].shape, len(ours[ours_path]))
        if shape != ours[ours_path] and ours_path not in may_differ:
            raise UserError(
                f"{path}: {key!r} is {shape} in our order of axes, and {ours_path} is {ours[ours_path]}."
            )
        if shape != ours[ours_path]:
            left.append(ours_path)
    return Match(file, keys, left)


def load(
    module: nnx.Module, method: str, source: str, *, may_differ: Set[str] = frozenset()
) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a checkpoint by our paths, without those that differ, and a line for the log.

    Arguments and errors as for `match`, and values that are not finite.
    """
    file, keys, left = match(module, method, source, may_differ=may_differ)
    path, arrays = file.published.path, {}
    ours = {p: x.ndim for part in tree.weights(module).values() for p, x in part.items()}
    for ours_path, key in keys.items():
        if ours_path in left:
            continue
        with explained(path):
            arrays[ours_path] = _ours(
                ours_path, np.asarray(file.entries[key].load()), ours[ours_path]
            )
        if not np.isfinite(arrays[ours_path]).all():
            raise UserError(f"{path}: {key!r} holds values that are not finite: it is damaged.")
    fresh = f"; fresh, for other classes: {', '.join(left)}" if left else ""
    return arrays, f"{path}: {len(arrays)} arrays for {method!r}{fresh}"


def _our_shape(path: str, shape: tuple[int, ...], axes: int) -> tuple[int, ...]:
    """As `_ours`, of a shape."""
    return _ours(path, np.broadcast_to(0, shape), axes).shape


def _ours(path: str, array: np.ndarray, axes: int) -> np.ndarray:
    """torch's order of axes into ours; a convolution of one cell into a matrix, where ours is one."""
    if not path.endswith("kernel"):
        return array
    while array.ndim > axes and array.shape[-1] == 1:
        array = array[..., 0]
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
