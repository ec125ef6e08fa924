"""Checkpoints of the methods' authors: one file a method, with the names of its arrays.

Each has `key(path) -> key`, from the path of an array of ours ('backbone/layer1/0/conv1/kernel',
'head/kernel') to the authors' name, and `UNUSED`, patterns of keys of the file that have no place in ours.
"""

import importlib
import re
from collections.abc import Set

import numpy as np
from flax import nnx

from fgvc_jax import modules
from fgvc_jax.errors import UserError, did_you_mean
from fgvc_jax.train import tree
from fgvc_jax.weights import COUNTER, open_weights
from fgvc_jax.weights.readers import explained


def names() -> list[str]:
    """The methods whose authors' checkpoints can be read."""
    return modules.names("weights.originals")


def load(
    module: nnx.Module, method: str, source: str, *, may_differ: Set[str] = frozenset()
) -> tuple[dict[str, np.ndarray], str]:
    """The arrays of a checkpoint by our paths, and a line for the log.

    Args:
      module: the method around its backbone; shapes are enough.
      method: its name.
      source: a state dict, as `fgvc_jax.weights.load_pretrained` takes it. A whole pickled module cannot be
        read: files from strangers are data.
      may_differ: paths that are left out where their shape is another (what is made for the classes).

    Raises:
      UserError: no mapping for the method, an array that is missing, unexpected or of another shape, values
        that are not finite.
    """
    if method not in names():
        raise UserError(
            f"config.init.file is for the methods {', '.join(names())}; this one is {method!r}. For weights "
            "of a backbone use config.model.pretrained."
        )
    layout = importlib.import_module(f"fgvc_jax.weights.originals.{method}")
    weights = open_weights(source)
    path, entries = weights.published.path, weights.entries
    ours = {p: x.shape for arrays in tree.weights(module).values() for p, x in arrays.items()}
    keys = {ours_path: layout.key(ours_path) for ours_path in ours}
    missing = [key for key in keys.values() if key not in entries]
    unused = (*layout.UNUSED, rf".*{COUNTER}")
    unexpected = [
        key
        for key in set(entries) - set(keys.values())
        if not any(re.fullmatch(pattern, key) for pattern in unused)
    ]
    if missing or unexpected:
        raise UserError(
            f"{path} is no checkpoint of {method!r} on this backbone: {len(missing)} arrays are missing"
            f"{f' (the first: {missing[0]!r}{did_you_mean(missing[0], entries)})' if missing else ''}, "
            f"{len(unexpected)} are unexpected{f' (as {sorted(unexpected)[0]!r})' if unexpected else ''}."
        )
    arrays, left = {}, []
    for ours_path, key in keys.items():
        with explained(path):
            array = _ours(ours_path, np.asarray(entries[key].load()), len(ours[ours_path]))
        if array.shape == ours[ours_path] and not np.isfinite(array).all():
            raise UserError(f"{path}: {key!r} holds values that are not finite: it is damaged.")
        if array.shape == ours[ours_path]:
            arrays[ours_path] = array
        elif ours_path in may_differ:
            left.append(ours_path)
        else:
            raise UserError(
                f"{path}: {key!r} is {array.shape} in our order of axes, and {ours_path} is "
                f"{ours[ours_path]}."
            )
    fresh = f"; fresh, for other classes: {', '.join(left)}" if left else ""
    return arrays, f"{path}: {len(arrays)} arrays for {method!r}{fresh}"


def _ours(path: str, array: np.ndarray, axes: int) -> np.ndarray:
    """torch's order of axes into ours; a convolution of one cell into a matrix, where ours is one."""
    if not path.endswith("kernel"):
        return array
    while array.ndim > axes and array.shape[-1] == 1:
        array = array[..., 0]
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
