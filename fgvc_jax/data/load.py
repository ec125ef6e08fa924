"""The data set that a config names."""

import logging
import os

from ml_collections import ConfigDict

from fgvc_jax import files
from fgvc_jax.data import manifest as manifests
from fgvc_jax.data import patch, sources
from fgvc_jax.data.doctor.facts import Facts, alike
from fgvc_jax.data.split import carve, retrieval, tell
from fgvc_jax.data.tfds import read as tfds
from fgvc_jax.errors import UserError, choose

log = logging.getLogger(__name__)

ORIGINALS = ("cub", "cars", "aircraft")
SOURCES = ("folder", "list", "inaturalist", *ORIGINALS, "competition", "tfds", "digits")


def load(data: ConfigDict) -> manifests.Manifest:
    """`config.data` -> a checked manifest, split without a look at the images.

    Raises:
      UserError: where the data is missing or inconsistent, or has faults.
    """
    manifest = split(read(data), data)
    manifests.check(manifest)
    return manifest


def split(
    manifest: manifests.Manifest, data: ConfigDict, facts: Facts | None = None
) -> manifests.Manifest:
    """The manifest with all splits, as `config.data` says; labels have been checked.

    Args:
      manifest: as `read` gives it.
      facts: about its images; those that are equal or look nearly so stay on one side of a split that is
        carved. None = they are not known, as where nobody has looked at the images.

    Raises:
      UserError: for inconsistent labels, or a `data.group` that fits no file.
    """
    carved = "all" in manifest.splits or "val" not in manifest.splits
    if (
        data.splits == "retrieval" and data.source != "tfds"
    ):  # whose records are split as they are read
        manifest = retrieval(manifest, data.val_fraction, data.split_seed)
    if data.splits == "retrieval":
        tell(manifest)
    else:
        manifest = carve(
            manifest,
            val_fraction=data.val_fraction,
            test_fraction=data.test_fraction,
            seed=data.split_seed,
            group=data.group,
            alike=alike(facts) if facts and carved else (),
        )
    manifests.check_labels(manifest)
    return manifest


def read(data: ConfigDict) -> manifests.Manifest:
    """`config.data` -> a manifest with the splits that the data come with, and their faults.

    Labels are as `data.labels_patch` corrects them.

    Raises:
      UserError: where there is nothing to look at, what is there can be read in two ways, labels are
        inconsistent, or a line of the patch does not fit them.
    """
    manifest = _read(data)
    if data.labels_patch:
        changes = patch.read(data.labels_patch)
        manifest = patch.apply(manifest, changes)
        log.info(patch.told(data.labels_patch, changes))
    manifests.check_labels(manifest)
    return manifest


def _read(data: ConfigDict) -> manifests.Manifest:
    choose(data.splits, ("official", "retrieval"), "config.data.splits")
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
        listed = sources.image_list if data.source == "list" else sources.inaturalist
        return listed(place, images=data.images and root(data.images))
    if data.source in ORIGINALS:
        return sources.original(data.source, place)
    if data.source == "competition":
        return sources.competition(place)
    return sources.folder(place)


def root(path: str) -> str:
    """The folder, with $FGVC_DATA and ~ filled in.

    Raises:
      UserError: there is none, or it lies in a bucket.
    """
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
    path = os.path.expanduser(os.path.expandvars(path))
    if "://" in path:
        raise UserError(
            f"{path}: images are listed and opened as files of a disk, which a bucket's are not. Mount it "
            "(gcsfuse --implicit-dirs BUCKET DIR; s3fs, rclone mount) and name the folder, or copy it to a "
            "disk. An image whose canvas is in the cache is not read again."
        )
    return path
