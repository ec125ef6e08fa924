"""The layout of a classification challenge whose class ids are no labels."""

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np

from fgvc_jax.data.manifest import Manifest
from fgvc_jax.data.sources.files import directory
from fgvc_jax.data.sources.folders import folder
from fgvc_jax.data.sources.names import few
from fgvc_jax.errors import UserError

log = logging.getLogger(__name__)

LAYOUT = """\
  ROOT/train/<classID>_<className>/*.jpg
  ROOT/test/<imageID>.jpg     without labels, if you have them
  ROOT/labels.txt             lines 'index classID', if the order of the classes is given"""


def competition(root: str | os.PathLike) -> Manifest:
    """`train/<classID>_<className>/*.jpg`, a flat `test/` and perhaps `labels.txt`.

    The ids (such as 04780, with their zeros) become `ids`, never labels: labels are positions, in
    the order of `labels.txt`, whose lines are 'index classID' (leading zeros may lack), or else of
    the sorted folders.

    Raises:
      UserError: as `folder`; for a folder without an id, two with the same one, or lines of labels.txt
        that are not exactly one a class.
    """
    root = directory(root, LAYOUT)
    found = folder(root)
    if not found.ids:
        raise UserError(
            f"{root}: not every class folder has an id of its own before its name, or two have the same "
            f"one: {few(found.classes)}. Expected:\n{LAYOUT}\nor use config.data.source = 'folder'."
        )
    table = root / "labels.txt"
    if not table.exists():
        return found
    order = _order(table, found.ids)
    label = np.argsort(order).astype(np.int32)  # of the class that was the i-th folder
    log.info(f"{found.name}: classes in the order of {table}")
    return dataclasses.replace(
        found,
        classes=tuple(found.classes[i] for i in order),
        ids=tuple(found.ids[i] for i in order),
        splits={k: s._replace(labels=label[s.labels]) for k, s in found.splits.items()},
    )


def _order(table: Path, ids: tuple[str, ...]) -> list[int]:
    """Which folder is the class of each index."""
    folder_of = {int(id_): i for i, id_ in enumerate(ids)}
    if len(folder_of) < len(ids):
        raise UserError(
            f"{table.parent}: two class folders have the same id but for leading zeros."
        )
    order: dict[int, int] = {}
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            index, id_ = map(int, line.split())
        except ValueError:
            raise UserError(f"{table}, line {number}: {line!r} is not 'index classID'.") from None
        if id_ not in folder_of:
            raise UserError(f"{table}, line {number}: no folder in train has the id {id_}.")
        if index in order or folder_of[id_] in order.values():
            raise UserError(f"{table}, line {number}: {line!r}: index or id stands there before.")
        order[index] = folder_of[id_]
    if set(order) != set(range(len(ids))):
        raise UserError(
            f"{table} must give each of the {len(ids)} classes of train an index from 0 to "
            f"{len(ids) - 1}; it gives {len(order)}, from {min(order, default='none')} to "
            f"{max(order, default='none')}."
        )
    return [order[i] for i in range(len(ids))]
