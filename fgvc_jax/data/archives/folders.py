"""Copies of a named data set as class folders, which go round in place of the official archives."""

import os
from pathlib import Path

from fgvc_jax.data import manifest as manifests
from fgvc_jax.data import sources
from fgvc_jax.data.archives.table import Row, Table
from fgvc_jax.data.sources.names import split_of

DEPTH = 4  # folders around the split folders, as in car_data/car_data/train


def find(roots: list[Path]) -> Path | None:
    """The folder that has train/ and test/ folders, or None."""
    for root in roots:
        for at, folders, _ in os.walk(root):
            folders.sort()
            if {"train", "test"} <= {split_of(name) for name in folders}:
                return Path(at)
            if len(Path(at).relative_to(root).parts) >= DEPTH:
                folders.clear()
    return None


def read(root: Path, banner: int) -> Table:
    """Images and labels alone; the sorted folders are the classes, whatever the official order.

    Args:
      banner: rows at the bottom of each image that are no photo.
    """
    found = sources.folder(root)
    manifests.check(found)
    manifests.check_classification(found)
    rows = [
        Row(split, file, str(root / file), {"label": int(label)})
        for split, (files, labels) in found.splits.items()
        for file, label in zip(files, labels, strict=True)
    ]
    metadata = {"ids": list(found.ids), "banner": banner, "copy": True}
    return Table({"label": found.classes}, rows, {}, metadata)
