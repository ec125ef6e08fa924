"""Methods: one file each, a class `Method` around any backbone; `_base.py` holds their contract.

Files with a leading underscore are shared parts. A method of one's own is a file anywhere, named by its path.
"""

import inspect

from flax import nnx

from fgvc_jax import modules
from fgvc_jax.errors import UserError, choose
from fgvc_jax.methods._base import Context, Cost, Method

__all__ = ["Context", "Cost", "Method", "arguments", "create", "get", "names"]

COMMON = ("self", "backbone", "num_classes", "image_size", "rngs", "dtype", "param_dtype")


def names() -> list[str]:
    return modules.names("methods")


def get(name: str, where: str = "method") -> type[Method]:
    """The class of a method, by name or by the path of a .py file.

    Raises:
      UserError: no such method (the nearest is named), or a file without a subclass of it called `Method`.
    """
    found = getattr(modules.load("methods", name, where), "Method", None)
    if not (inspect.isclass(found) and issubclass(found, Method)):
        raise UserError(
            f"{where} = {name!r} defines no class Method(fgvc_jax.methods.Method); see docs/add_a_method.md."
        )
    return found


def arguments(name: str, where: str = "method") -> dict[str, object]:
    """The arguments of a method with their defaults."""
    parameters = inspect.signature(get(name, where).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in COMMON}


def create(name: str, backbone: nnx.Module, num_classes: int, **given) -> Method:
    """A method by name; UserError for an argument that it does not take."""
    method, known = get(name), arguments(name)
    for argument in given:
        if argument not in COMMON:
            choose(argument, known, f"argument of method {name!r}:")
    return method(backbone, num_classes, **given)
