"""Methods, phases and evaluators are files: found by name in their folder, or by a path."""

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

from fgvc_jax.errors import UserError, choose


def names(package: str) -> list[str]:
    """The files of a folder of the package, without those that begin with an underscore (shared parts)."""
    found = importlib.import_module(f"fgvc_jax.{package}").__path__
    return sorted(m.name for m in pkgutil.iter_modules(found) if not m.name.startswith("_"))


def load(package: str, name: str, where: str) -> ModuleType:
    """The module of a name, or of a path that ends in .py.

    Args:
      package: 'methods', 'phases' or 'evaluators'.
      name: 'baseline' is fgvc_jax/<package>/baseline.py; 'PATH/mine.py' is that file.
      where: the config key, for the error message.

    Raises:
      UserError: no such name (the nearest is named) or file, or a file that Python cannot run.
    """
    if not name.endswith(".py"):
        choose(name, names(package), where)
        return importlib.import_module(f"fgvc_jax.{package}.{name}")
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise UserError(
            f"{where} = {name!r}: there is no file {path}. Give the path of a .py file, or one of: "
            f"{', '.join(names(package))}."
        )
    key = f"fgvc_jax_user.{package}.{path}"
    if key not in sys.modules:  # once, so that a class is the same class wherever it is asked for
        spec = importlib.util.spec_from_file_location(key, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[key]
            raise UserError(f"{where} = {name!r}: {path} cannot be imported: {error!r}.") from error
    return sys.modules[key]
