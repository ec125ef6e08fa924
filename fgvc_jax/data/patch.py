"""A file of corrections to labels: `config.data.labels_patch`, as `fgvc audit` makes them.

CSV in UTF-8 with the header file,label,new_label. `file` is an image as manifest.json names it, `label` the
name of its class as the data have it, `new_label` the name of another class of the data, or 'drop', which
leaves the image out. Lines that begin with # are comments.
"""

import csv
import dataclasses
import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fgvc_jax.data.manifest import Manifest, Split
from fgvc_jax.errors import UserError, did_you_mean

HEADER = ("file", "label", "new_label")
DROP = "drop"


class Change(NamedTuple):
    """One line of a patch."""

    place: str  # the patch and the line's number, for messages
    file: str
    label: str
    new_label: str


def read(path: str | os.PathLike) -> list[Change]:
    """The lines of a patch, at least one.

    Raises:
      UserError: a file that cannot be read, with another header, with nothing in it but comments, or with a
        line that has not three entries or names an image a second time. File and line are named.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"config.data.labels_patch: {path}: {error.strerror}.") from None
    # A comment becomes an empty line, so that the numbers of the lines stay.
    rows = csv.reader("\n" if line.startswith("#") else line for line in text.splitlines(True))
    header, changes, first = None, [], {}
    for row in rows:
        place = f"{path}, line {rows.line_num}"
        if not row:
            continue
        if header is None:
            header = tuple(row)
            if header != HEADER:
                raise UserError(
                    f"{place}: the header must be {','.join(HEADER)}, not {','.join(row)}."
                )
            continue
        if len(row) != len(HEADER):
            raise UserError(f"{place}: {len(row)} entries; it must have {', '.join(HEADER)}.")
        change = Change(place, *row)
        if change.file in first:
            raise UserError(
                f"{place}: {change.file!r} stands in line {first[change.file]} too; keep one."
            )
        first[change.file] = rows.line_num
        changes.append(change)
    if not changes:
        raise UserError(
            f"{path} changes no label: all its lines are comments. Take away the # before those that you "
            "agree with, or leave config.data.labels_patch empty."
        )
    return changes


def told(path: str | os.PathLike, changes: Sequence[Change]) -> str:
    """How many images a patch changes, in one line."""
    dropped = sum(change.new_label == DROP for change in changes)
    return f"labels patched by {path}: {len(changes) - dropped:,} relabelled, {dropped:,} dropped"


def apply(manifest: Manifest, changes: Sequence[Change]) -> Manifest:
    """The manifest with the changes made, in whichever split an image stands; the class table stays.

    Raises:
      UserError: a line whose image or class the data do not have, whose image has another label now, or that
        changes nothing.
    """
    place = {name: number for number, name in enumerate(manifest.classes)}
    where = {
        file: (split, row)
        for split, (files, _) in manifest.splits.items()
        for row, file in enumerate(files)
    }
    labels = {name: split.labels.copy() for name, split in manifest.splits.items()}
    dropped = {}
    for change in changes:
        if change.file not in where:
            near = difflib.get_close_matches(change.file, where, n=1, cutoff=0.8)
            raise UserError(
                f"{change.place}: {manifest.name} has no image {change.file!r}"
                + (f"; did you mean {near[0]!r}?" if near else ".")
                + " Files are named as in a run's manifest.json."
            )
        split, row = where[change.file]
        now = manifest.classes[labels[split][row]]
        if now != change.label:
            raise UserError(
                f"{change.place}: {change.file!r} has the label {now!r} now, not {change.label!r}. The patch "
                "was made for other labels: make it again, or take the line out."
            )
        if change.new_label == DROP and DROP not in place:
            dropped[change.file] = f"dropped by {change.place}"
        elif change.new_label == DROP:
            raise UserError(
                f"{change.place}: a class is called {DROP!r}, so that this can mean two things. Leave "
                "images out, or relabel to it, by hand in the data."
            )
        elif change.new_label not in place:
            known = did_you_mean(change.new_label, [*manifest.classes, DROP])
            raise UserError(f"{change.place}: there is no class {change.new_label!r}{known}")
        elif change.new_label == change.label:
            raise UserError(f"{change.place}: the new label is the old one; take the line out.")
        else:
            labels[split][row] = place[change.new_label]
    splits = dict(_without(manifest, labels, dropped))
    return dataclasses.replace(manifest, splits=splits, excluded=manifest.excluded | dropped)


def _without(
    manifest: Manifest, labels: dict[str, np.ndarray], dropped: dict[str, str]
) -> Iterator[tuple[str, Split]]:
    for name, (files, _) in manifest.splits.items():
        kept = [row for row, file in enumerate(files) if file not in dropped]
        yield name, Split(tuple(files[row] for row in kept), labels[name][kept])
