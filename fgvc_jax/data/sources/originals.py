"""Named data sets as their archives unpack."""

import functools
import importlib
import logging
import os

import numpy as np

from fgvc_jax.data.archives.table import Tree
from fgvc_jax.data.manifest import Manifest
from fgvc_jax.data.sources.files import directory
from fgvc_jax.data.sources.images import read_in
from fgvc_jax.data.sources.rows import as_splits

log = logging.getLogger(__name__)

LAYOUTS = {
    "cub": "  ROOT/CUB_200_2011/ with images/, images.txt, train_test_split.txt, ...",
    "cars": "  ROOT/ with cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat,\n"
    "  or with car_ims/ and cars_annos.mat",
    "aircraft": "  ROOT/fgvc-aircraft-2013b/data/ with images/, variants.txt, images_variant_train.txt, ...",
}


def original(name: str, root: str | os.PathLike) -> Manifest:
    """CUB-200-2011, Stanford Cars or FGVC-Aircraft (variants) from the folder that was unpacked.

    Splits, class order and ids are the official ones, with the official val of Aircraft, whose
    lowest 20 rows (a banner with the photographer's name) are cut off. A copy may have fewer
    images, if its lists name exactly those; how it differs from the official list is said.

    Args:
      name: 'cub', 'cars', 'aircraft'.
      root: the unpacked folder, or one above it.

    Raises:
      UserError: for a list that is missing or damaged, or an image that it names and that is missing.
    """
    root = directory(root, LAYOUTS[name])
    reader = importlib.import_module(f"fgvc_jax.data.archives.{name}")
    table = reader.read(Tree([root]))
    classes = table.classes["label"]
    rows = [(os.path.relpath(r.path, root), r.values["label"], r.split) for r in table.rows]
    splits = as_splits(rows, range(len(classes)))
    counts = {split: len(s.files) for split, s in splits.items()}
    official = reader.EXPECTED.splits
    same = "the official list" if counts == official else f"the official list has {_told(official)}"
    log.info(f"{name}: {_told(counts)}: {same}")
    read = functools.partial(_read, str(root), table.metadata.get("banner", 0))
    ids = tuple(table.metadata.get("ids", ()))
    return Manifest(name, classes, splits, read, str(root), ids=ids, official=counts == official)


def _read(root: str, banner: int, file: str) -> np.ndarray:
    image = read_in(root, file)
    return image[: len(image) - banner]


def _told(counts: dict[str, int]) -> str:
    return " / ".join(f"{count:,} {split}" for split, count in counts.items())
