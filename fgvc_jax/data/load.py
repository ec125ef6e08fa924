"""The data set that a config names."""

import os

from ml_collections import ConfigDict

from fgvc_jax import files
from fgvc_jax.data import manifest as manifests
from fgvc_jax.data import sources
from fgvc_jax.data.split import carve
from fgvc_jax.data.tfds import read as tfds
from fgvc_jax.errors import UserError

ORIGINALS = ("cub", "cars", "aircraft")
SOURCES = ("folder", "list", "inaturalist", *ORIGINALS, "competition", "tfds", "digits")


def load(data: ConfigDict) -> manifests.Manifest:
    """`config.data` -> a checked manifest.

    Raises:
      UserError: where the data is missing or inconsistent.
    """
    found = _read(data)
    found = carve(
        found,
        val_fraction=data.val_fraction,
        test_fraction=data.test_fraction,
        seed=data.split_seed,
        group=data.group,
    )
    try:
        manifests.check(found)
    except UserError as error:
        if data.splits == "official":
            raise
        raise UserError(
            f"{error}\nconfig.data.splits = 'retrieval' keeps half of the classes for testing, unseen, which "
            "is for methods that learn a metric. To classify: --config.data.splits=official."
        ) from None
    return found


def _read(data: ConfigDict) -> manifests.Manifest:
    """With the splits that the data come with."""
    if data.source == "digits":
        return sources.digits()
    place = root(data.root)
    if data.source == "tfds":
        return tfds.prepared(
            place,
            cache=files.cache_folder(data.cache),
            splits=data.splits,
            fold=data.fold,
            label=data.label_feature,
            image=data.image_feature,
            val_fraction=data.val_fraction,
            seed=data.split_seed,
        )
    if data.source in ("list", "inaturalist"):
        read = sources.image_list if data.source == "list" else sources.inaturalist
        return read(place, images=data.images and root(data.images))
    if data.source in ORIGINALS:
        return sources.original(data.source, place)
    if data.source == "competition":
        return sources.competition(place)
    return sources.folder(place)


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
            "folder that holds your data sets (`fgvc prepare --help` says how they get there), or pass "
            "--config.data.root=DIR; folders train/<class>/... are read with --config.data.source=folder."
        )
    return os.path.expanduser(os.path.expandvars(path))
