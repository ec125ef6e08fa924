"""Anybody's folder of class folders."""

import functools
import logging
import os
from collections import Counter
from pathlib import Path

import numpy as np

from fgvc_jax.data.manifest import Fault, Manifest, Split
from fgvc_jax.data.sources.files import directory, entries, images_below, is_image
from fgvc_jax.data.sources.images import EXTENSIONS, read_in
from fgvc_jax.data.sources.names import few, nearest, split_ids, split_of
from fgvc_jax.errors import UserError

log = logging.getLogger(__name__)

LAYOUT = """\
  ROOT/train/<class>/*.jpg      and, if you have them, ROOT/val/<class>/ and ROOT/test/<class>/
or class folders alone, which are then split:
  ROOT/<class>/*.jpg"""


def folder(root: str | os.PathLike) -> Manifest:
    """Class folders of images, already split or not.

    `root/train/<class>/` with optional `val/` and `test/` (also valid, validation, training,
    train_images and the like), or class folders alone, which are the split 'all'. The training
    folders, sorted, are the class table of every split; a split may lack classes. A class that only val or
    test has, a class folder without images and a split without any become `faults`. Where all folders are
    called `<classID>_<className>` the names are the class names and the ids are kept. A test folder
    with images and no class folders gives `unlabelled` files. Class folders are searched to any
    depth; hidden files and folders are ignored, files that are no images are ignored and counted.

    Args:
      root: the directory. File names in the manifest are relative to it.

    Raises:
      UserError: root missing, or without class folders with images; two folders for one split.
    """
    root = directory(root, LAYOUT)
    name = root.resolve().name or "folder"
    where = _split_folders(root)
    other: Counter[str] = Counter()  # files that are no images, by extension

    shown = root / where.get("train", "")
    train = _class_folders(root, where.get("train", ""), other)
    loose = {at: [f for f in entries(root / at)[1] if is_image(f)] for at in {"", *where.values()}}
    if not train:
        count = len(loose[where.get("train", "")])
        found = f"{count} images lie directly in it, which gives them no class. " if count else ""
        raise UserError(f"No class folders in {shown}. {found}Expected:\n{LAYOUT}")
    faults = []
    empty = [c for c, files in train.items() if not files]
    if empty:
        faults.append(
            Fault(
                "empty_class",
                f"{len(empty)} class folder{'s' if len(empty) > 1 else ''} without images in {shown}: "
                f"{few(empty)}",
                f"Read are {' '.join(sorted(EXTENSIONS))}. Put images there or remove the folder.",
            )
        )
    if len(empty) == len(train):
        raise UserError(f"{faults[0].text}. {faults[0].advice}")
    found = {"train" if where else "all": train}
    unlabelled: tuple[str, ...] = ()
    for split in ("val", "test"):
        if split not in where:
            continue
        at = where[split]
        own = {c: f for c, f in _class_folders(root, at, other).items() if f}
        if split == "test" and not own and loose[at]:
            unlabelled = tuple(f"{at}/{file}" for file in loose.pop(at))
            log.info(
                f"{name}: {at}/ has {len(unlabelled):,} images without labels: "
                f"predict them with `fgvc predict RUN {root / at}`"
            )
            continue
        unknown = [c for c in own if c not in train]
        if unknown:
            more = f" ({len(unknown)} such classes: {few(unknown)})" if len(unknown) > 1 else ""
            faults.append(
                Fault(
                    "unknown_class",
                    f"Class {unknown[0]!r} in {root / at} is not in {shown}, whose folders are the class "
                    f"table{more}. The nearest training class is {nearest(unknown[0], list(train))!r}",
                    "Rename the folder, or add training images.",
                    classes=tuple(unknown),
                )
            )
        if own:
            found[split] = own
        else:
            faults.append(
                Fault(
                    "empty_split",
                    f"No class folders with images in {root / at}",
                    f"Remove the folder, or fill it. Expected:\n{LAYOUT}",
                )
            )

    ignored = sum(map(len, loose.values()))
    if ignored:
        log.info(f"{name}: {ignored:,} images outside class folders ignored: they have no class")
    if other:
        kinds = ", ".join(f"{n} {ext or 'without extension'}" for ext, n in other.most_common(5))
        log.info(f"{name}: {other.total():,} files that are no images ignored ({kinds})")
    folders = sorted({name for own in found.values() for name in own} - set(empty))
    classes, ids = split_ids(folders)
    called = dict(zip(folders, classes, strict=True))
    faults = [f._replace(classes=tuple(called[c] for c in f.classes)) for f in faults]
    return Manifest(
        name,
        classes,
        {split: _as_split(own, folders) for split, own in found.items()},
        functools.partial(read_in, str(root)),
        str(root),
        ids=ids,
        unlabelled=unlabelled,
        faults=tuple(faults),
    )


def _split_folders(root: Path) -> dict[str, str]:
    """Split -> its folder in root; {} where there are class folders alone."""
    where: dict[str, str] = {}
    for found in entries(root)[0]:
        split = split_of(found)
        if split in where:
            raise UserError(
                f"{root} has {where[split]} and {found}: which is the {split} split? Keep one."
            )
        if split:
            where[split] = found
    if where and "train" not in where:
        present = ", ".join(where.values())
        raise UserError(f"{root} has {present} but no train folder. Expected there:\n{LAYOUT}")
    return where


def _class_folders(root: Path, at: str, other: Counter) -> dict[str, list[str]]:
    """Sorted class folder -> its sorted images, at any depth, relative to root."""
    names = entries(root / at)[0]
    return {c: images_below(root, f"{at}/{c}" if at else c, other) for c in names}


def _as_split(files_of: dict[str, list[str]], folders: list[str]) -> Split:
    label = {folder: i for i, folder in enumerate(folders)}
    labels = [label[c] for c, files in files_of.items() for _ in files]
    return Split(tuple(f for files in files_of.values() for f in files), np.array(labels, np.int32))
