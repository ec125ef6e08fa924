"""How many images and classes a data set has, where its images need not be there."""

import importlib
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fgvc_jax.data import cache, load
from fgvc_jax.data.archives.table import Expected
from fgvc_jax.data.manifest import Manifest, Split
from fgvc_jax.errors import UserError

NAMED = ("aircraft", "cars", "cub", "dogs", "dtd", "flowers", "nabirds")
SPLITS = ("train", "val", "test")


class Counts(NamedTuple):
    """Attributes:
    classes: number of classes.
    splits: images by split.
    canvas: side of the canvases, pixels.
    source: where the numbers are from, for people.
    """

    classes: int
    splits: dict[str, int]
    canvas: int
    source: str

    def manifest(self) -> Manifest:
        """A manifest of so many classes and images, none of which can be read."""
        classes = tuple(f"class {i}" for i in range(self.classes))
        empty = {s: Split((), np.zeros(n, np.int32)) for s, n in self.splits.items()}
        return Manifest("plan", classes, empty, read=_unreadable)


def of(
    data: ConfigDict, *, resize: int, squash: tuple[int, ...], images: str = "", classes: int = 0
) -> Counts:
    """The counts that are given, else the data's, else the official ones of a named data set.

    Args:
      data: config.data.
      resize, squash: of the view, for the side of the canvases.
      images: 'train', 'train,val' or 'train,val,test', numbers of images.
      classes: number of classes.

    Raises:
      UserError: nothing is known.
    """
    settings = {"resize": resize, "squash": squash, "canvas": data.canvas}
    coming = cache.canvas_side(np.zeros((0, 2), np.int32), **settings)
    official = _official(data)
    if images:
        splits = _given(images)
        classes = classes or (official.classes["label"] if official else 0)
        if not classes:
            raise UserError("--images needs --classes, too: how many classes there are.")
        return Counts(classes, splits, coming, "as given")
    try:
        manifest = load.split(load.read(data), data)
    except UserError as error:
        if official is None:
            raise UserError(
                f"{error}\nTo plan without the images: --images=TRAIN,VAL,TEST --classes=N."
            ) from None
        label = data.label_feature or "label"
        return Counts(
            official.classes[label], _carved(official.splits, data), coming, "official counts"
        )
    files = [file for split in manifest.splits.values() for file in split.files]
    side = cache.canvas_side(cache.image_sizes(manifest, files), **settings)
    splits = {name: len(split.labels) for name, split in manifest.splits.items()}
    return Counts(len(manifest.classes), splits, side, "read")


def _unreadable(file: str) -> np.ndarray:
    raise UserError(f"{file}: a plan has no images.")


def _given(images: str) -> dict[str, int]:
    numbers = images.split(",")
    if not all(n.strip().isdigit() for n in numbers) or not 1 <= len(numbers) <= 3:
        raise UserError(
            f"--images={images}: give the images of train, val and test, such as --images=5394,600,5794; "
            "0 = there is no such split."
        )
    found = {name: int(n) for name, n in zip(SPLITS, numbers, strict=False) if int(n)}
    if "train" not in found:
        raise UserError(f"--images={images}: there must be training images.")
    return found


def _official(data: ConfigDict) -> Expected | None:
    """The counts of the named data set that the config means, if it means one."""
    name = PurePosixPath(data.root).name if data.source == "tfds" else data.source
    if name not in NAMED or data.splits != "official":
        return None
    return importlib.import_module(f"fgvc_jax.data.archives.{name}").EXPECTED


def _carved(splits: dict[str, int], data: ConfigDict) -> dict[str, int]:
    if "val" in splits or not data.val_fraction:
        return dict(splits)
    val = round(splits["train"] * data.val_fraction)
    return {"train": splits["train"] - val, "val": val} | {
        name: n for name, n in splits.items() if name != "train"
    }
