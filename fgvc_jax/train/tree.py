"""A module as flat dictionaries {'backbone/layer1/0/conv1/kernel': array}, and back.

Flat dictionaries make patterns, freezing, interpolation by path and checkpoints plain dictionary work, and
are several times cheaper to pass through `jax.jit` than `nnx.State`.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from flax import nnx

Flat = dict[str, jax.Array]


class Static(NamedTuple):
    """A module without its arrays; hashable, so a jitted step can close over it."""

    graphdef: Any
    params: tuple[tuple, ...]  # path of every parameter, as nnx has it (list indices are ints)
    batch_stats: tuple[tuple, ...]


def _flatten(state: nnx.State) -> tuple[tuple[tuple, ...], Flat]:
    leaves = [(tuple(path), leaf.get_value()) for path, leaf in nnx.to_flat_state(state)]
    return tuple(p for p, _ in leaves), {"/".join(map(str, p)): value for p, value in leaves}


def _nest(paths: Iterable[tuple], flat: Flat) -> dict:
    tree: dict = {}
    for path in paths:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = flat["/".join(map(str, path))]
    return tree


def split(module: nnx.Module) -> tuple[Static, Flat, Flat]:
    """(static, parameters, batch statistics) of a module in the mode (train or eval) it is in."""
    graphdef, params, batch_stats = nnx.split(module, nnx.Param, ...)
    param_paths, params = _flatten(params)
    stat_paths, batch_stats = _flatten(batch_stats)
    return Static(graphdef, param_paths, stat_paths), params, batch_stats


def merge(static: Static, params: Flat, batch_stats: Flat) -> nnx.Module:
    """The module with these arrays."""
    rest = _nest(static.batch_stats, batch_stats)
    return nnx.merge(static.graphdef, _nest(static.params, params), rest)


def batch_stats(module: nnx.Module) -> Flat:
    """The batch statistics that a forward pass has left in a merged module."""
    return _flatten(nnx.split(module, nnx.Param, ...)[2])[1]


def weights(module: nnx.Module) -> dict[str, Flat]:
    """{'params', 'batch_stats'}: all arrays of a module."""
    _, params, rest = split(module)
    return {"params": params, "batch_stats": rest}


def matches(patterns: Iterable[str], path: str) -> bool:
    """Whether any of the patterns (regular expressions) matches the whole path."""
    return any(re.fullmatch(pattern, path) for pattern in patterns)


def interpolate(first: Flat, second: Flat, alpha: float, prefix: str | tuple[str, ...]) -> Flat:
    """alpha * first + (1 - alpha) * second for every path under a prefix that both have in one shape.

    Other paths are taken from `first`. FineNet interpolates the classifier's and the comparator's backbone
    (METHODS.md A.5), parameters and batch statistics alike. alpha = 1 returns `first` to the bit.
    """
    result = dict(first)
    for path, a in first.items():
        b = second.get(path)
        if path.startswith(prefix) and b is not None and b.shape == a.shape and alpha != 1:
            result[path] = alpha * a + (1 - alpha) * b
    return result
