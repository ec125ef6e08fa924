"""The data set that a config names."""

import os
from collections.abc import Callable

from ml_collections import ConfigDict

from fgvc_jax.data import manifest as manifests
from fgvc_jax.data import sources
from fgvc_jax.errors import UserError


def load(data: ConfigDict, say: Callable[[str], None] = print) -> manifests.Manifest:
    """`config.data` -> a checked manifest.

    Raises:
      UserError: where the data is missing or inconsistent.
    """
    fractions = {"val_fraction": data.val_fraction, "test_fraction": data.test_fraction}
    if data.source == "digits":
        found = sources.digits(**fractions, seed=data.split_seed)
    else:
        found = sources.folder(root(data.root), **fractions, seed=data.split_seed, say=say)
    manifests.check(found)
    return found


def root(path: str) -> str:
    """The folder, with $FGVC_DATA and ~ filled in."""
    if not path:
        raise UserError(
            "config.data.root is empty: name the folder of your images with --config.data.root=DIR. "
            "It holds train/<class>/..., with optional val/ and test/, or class folders alone."
        )
    if "$FGVC_DATA" in path and "FGVC_DATA" not in os.environ:
        raise UserError(
            f"config.data.root is {path}, but the environment variable FGVC_DATA is not set. Set it to the "
            "folder that holds your data sets, or pass --config.data.root=DIR. Either way the folder must "
            "hold train/<class>/... and test/<class>/... images."
        )
    return os.path.expanduser(os.path.expandvars(path))
