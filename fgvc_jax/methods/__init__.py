"""Methods: one file each, a class `Method` around any backbone.

A method is an `nnx.Module` with

- `task`: 'classify' or 'verify' (same/different pairs); it picks the evaluation and the metric that "best
  by validation" means;
- `updates`: a tuple of update(module, batch, carry, rngs, progress) -> (loss, carry, metrics), each one an
  optimizer update with a forward of its own;
- `predict(images) -> {'scores': ..., 'embedding': ...}`: class scores [B, C] or a same/different logit [B],
  and the backbone's embedding [B, D];
- `views`: how many images an example has.

It is made by `Method(backbone, num_classes, rngs=..., dtype=..., param_dtype=..., **arguments)` and sized
from `backbone.info`, never from a name.
"""

import importlib
import inspect
import pkgutil

from flax import nnx

from fgvc_jax.errors import choose


def names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> type[nnx.Module]:
    """The class of a method; UserError with the nearest name where there is none."""
    choose(name, names(), "method")
    return importlib.import_module(f"fgvc_jax.methods.{name}").Method


def create(name: str, backbone: nnx.Module, num_classes: int, **arguments) -> nnx.Module:
    """A method by name; UserError for an argument that it does not take."""
    method = get(name)
    known = set(inspect.signature(method.__init__).parameters) - {"self", "backbone", "num_classes"}
    for argument in arguments:
        choose(argument, known, f"argument of method {name!r}:")
    return method(backbone, num_classes, **arguments)
