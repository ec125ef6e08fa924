"""Anybody's list of images: CSV, tab-separated or text."""

import csv
import functools
import itertools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fgvc_jax.data.manifest import Fault, Manifest
from fgvc_jax.data.sources.files import is_image, listed
from fgvc_jax.data.sources.images import read_in
from fgvc_jax.data.sources.names import few, nearest, split_of
from fgvc_jax.data.sources.rows import as_splits
from fgvc_jax.errors import UserError

log = logging.getLogger(__name__)

# Names of columns, the likelier first; case, spaces and dashes do not matter.
PATH = (
    *("path", "file_path", "filepath", "image_path", "img_path", "file", "file_name", "filename"),
    *("image", "img", "image_name", "image_id", "img_id", "id"),
)
LABEL = (
    *("label", "class", "category", "target", "class_name", "category_name", "label_name"),
    *("class_id", "category_id", "label_id"),
)
SPLIT = ("split", "set", "subset", "partition")
LAYOUT = """\
  path,label,split
  photos/1.jpg,Lynx lynx,train
Header and split may be left out; tabs or spaces may stand for commas. Paths are relative to the list."""


class Row(NamedTuple):
    """A line of the list; split 'all' where it has no such column."""

    line: int
    file: str
    label: str
    split: str


def image_list(
    path: str | os.PathLike,
    *,
    images: str | os.PathLike = "",
) -> Manifest:
    """A list with a line an image: path, label and perhaps split.

    With a header, columns are found by their usual names (path, file, filename, image, id; label,
    class, category, target; split, set, subset); without, they are path, label[, split]. Text
    without commas and tabs is split at its last spaces. Without a split all is the split 'all'. A
    path without an extension, or one that is not there, is also looked for with the extensions of
    images and in the folders images/ and train/ (val/, test/ for rows of these splits), so that
    Kaggle's `Id,Category` can be read. The labels of train, sorted, are the class table; if all are
    whole numbers they are sorted as such, and are the ids too. Rows of the test split without a
    label are `unlabelled`.

    Args:
      path: the list, in UTF-8.
      images: the folder that paths are relative to; '' = the list's own.

    Raises:
      UserError: with the line, for a path that fits several files or stands twice, an unknown split or a
        row with too many columns; where no image is there. Images that are missing, labels that are
        missing or that train lacks become `faults`.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder, not a list" if path.is_dir() else "does not exist"
        raise UserError(f"List of images {path} {what}. Expected a text file such as:\n{LAYOUT}")
    root = Path(images).expanduser() if images else path.parent
    if not root.is_dir():
        raise UserError(f"config.data.images = {str(images)!r} is no folder.")
    rows, faults = _locate(root, path, _rows(path))
    bare = [row for row in rows if not row.label]
    wrong = [f"line {row.line}" for row in bare if row.split != "test"]
    if wrong:
        faults.append(
            Fault(
                "no_label",
                f"{path}: {len(wrong):,} images have no label: {few(wrong)}",
                "Label them or remove the lines; only images of a test split may come without.",
            )
        )
        bare = [row for row in bare if row.split == "test"]
    if bare:
        log.info(
            f"{path.name}: {len(bare):,} test images have no label and are left out of the test"
        )
    rows = [row for row in rows if row.label]
    labels = {row.label for row in rows if row.split in ("all", "train")}
    if not labels:
        raise UserError(f"{path} lists no training image; its labels are the class table.")
    unknown = {row.label: row for row in reversed(rows) if row.label not in labels}
    if unknown:
        row = min(unknown.values())  # the first line
        more = f" ({len(unknown)} such labels: {few(sorted(unknown))})" if len(unknown) > 1 else ""
        faults.append(
            Fault(
                "unknown_class",
                f"{path}, line {row.line}: label {row.label!r} of split {row.split!r} is not among the "
                f"training labels, which are the class table{more}; the nearest is "
                f"{nearest(row.label, sorted(labels))!r}",
                "Correct it, or add training images.",
                classes=tuple(unknown),
            )
        )
    classes, ids = _class_table(labels | unknown.keys(), path)
    label = {name: i for i, name in enumerate(classes)}
    return Manifest(
        path.stem,
        classes,
        as_splits(((row.file, row.label, row.split) for row in rows), label),
        functools.partial(read_in, str(root)),
        str(root),
        ids=ids,
        unlabelled=tuple(row.file for row in bare),
        faults=tuple(faults),
    )


def _rows(path: Path) -> list[Row]:
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        raise UserError(f"{path} is empty. Expected lines such as:\n{LAYOUT}")
    columns = _columns(path, first[1])
    if columns:
        named = zip(("path", "label", "split"), columns, strict=True)
        shown = [f"{what} from {first[1][c]!r}" for what, c in named if c is not None]
        log.info(f"{path.name}: {', '.join(shown)}")
    elif len(first[1]) in (2, 3):
        columns = (0, 1, 2 if len(first[1]) == 3 else None)
        lines = itertools.chain([first], lines)
    else:
        raise UserError(
            f"{path}, line {first[0]}: {len(first[1])} columns, and no header that says which are path "
            f"and label. Expected:\n{LAYOUT}"
        )
    rows = []
    for line, cells in lines:
        if len(cells) > len(first[1]):
            raise UserError(
                f"{path}, line {line}: {len(cells)} columns, but {len(first[1])} in the first line. "
                'A path or label with a comma needs quotes: "a, b".'
            )
        file, label, split = ("" if c is None or c >= len(cells) else cells[c] for c in columns)
        kind = "all" if columns[2] is None else split_of(split)
        if kind is None:
            raise UserError(
                f"{path}, line {line}: split {split!r} is unknown; allowed are train, val and test (also "
                "training, valid, validation, dev, testing)."
            )
        if not file:
            raise UserError(f"{path}, line {line}: the path is empty.")
        rows.append(Row(line, os.path.normpath(file), label, kind))
    return rows


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of the lines that are not empty."""
    # File names are bytes to the system: what is not UTF-8 is kept as it is.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        first = next((line for line in file if line.strip()), "")
        file.seek(0)
        delimiter = max("\t,;", key=first.count)
        if delimiter in first:
            found = csv.reader(file, delimiter=delimiter, strict=True)
        else:  # 'path label' or 'path label split'; the path may hold spaces
            words = first.split()
            with_split = len(words) > 2 and (split_of(words[-1]) or words[-1].lower() in SPLIT)
            found = (line.rsplit(maxsplit=2 if with_split else 1) for line in file)
        try:
            for number, cells in enumerate(found, 1):
                number = getattr(found, "line_num", number)  # a quoted cell may hold line breaks
                if any(map(str.strip, cells)):
                    yield number, list(map(str.strip, cells))
        except csv.Error as error:
            raise UserError(f"{path}, line {found.line_num}: {error}.") from None


def _columns(path: Path, cells: list[str]) -> tuple[int, int, int | None] | None:
    """Which columns are path, label and split; None where this line is no header."""
    names = [re.sub("[ -]", "_", cell.lower()) for cell in cells]
    file, label, split = (
        next((names.index(name) for name in known if name in names), None)
        for known in (PATH, LABEL, SPLIT)
    )
    if {file, label, split} == {None} or any(map(is_image, names)):
        return None
    rest = [c for c in range(len(names)) if c not in (file, label, split)]
    if file is not None and label is None and len(rest) == 1:  # Kaggle's 'id,breed'
        label = rest[0]
    if file is None or label is None:
        raise UserError(
            f"{path}: no column for the {'path' if file is None else 'label'} among {', '.join(cells)}. "
            f"Call it {'path' if file is None else 'label'!r}."
        )
    return file, label, split


def _locate(root: Path, path: Path, rows: list[Row]) -> tuple[list[Row], list[Fault]]:
    """The rows with their files as they lie in root, and those that are missing as a fault."""
    names = functools.cache(listed)

    @functools.cache
    def images(folder: str) -> dict[str, list[str]]:
        """Name without extension -> names."""
        found: dict[str, list[str]] = {}
        for name in filter(is_image, names(folder)):
            found.setdefault(os.path.splitext(name)[0], []).append(name)
        return found

    def look(folder: str, file: str) -> list[str]:
        at, name = os.path.split(os.path.join(folder, file))
        if name in names(os.path.join(root, at)):
            return [os.path.join(at, name)]
        found = [] if is_image(name) else images(os.path.join(root, at)).get(name, [])
        return [os.path.join(at, name) for name in sorted(found)]

    @functools.cache
    def beside(split: str) -> list[str]:
        wanted = "train" if split == "all" else split
        known = ("images", "image", "imgs", "photos")
        return sorted(n for n in names(str(root)) if n.lower() in known or split_of(n) == wanted)

    missing, found, line_of = [], [], {}
    for row in rows:
        hits = look("", row.file)
        hits = hits or [hit for folder in beside(row.split) for hit in look(folder, row.file)]
        if len(hits) > 1:
            raise UserError(
                f"{path}, line {row.line}: {row.file!r} may be {' or '.join(hits)}. "
                "Write the whole path, or name the images' folder with --config.data.images=DIR."
            )
        if not hits:
            missing.append(f"{row.file} (line {row.line})")
            continue
        (file,) = hits
        if file in line_of:
            raise UserError(
                f"{path}, line {row.line}: {file!r} stands in line {line_of[file]} already. An image may be "
                "listed once only."
            )
        line_of[file] = row.line
        found.append(row._replace(file=file))
    if not missing:
        return found, []
    fault = Fault(
        "missing_image",
        f"{path}: {len(missing):,} of {len(rows):,} images are not in {root}: {few(missing)}",
        "Bring them, correct the paths, or name the folder that they are relative to with "
        "--config.data.images=DIR.",
    )
    if not found:
        raise UserError(f"{fault.text}. {fault.advice}")
    return found, [fault]


def _class_table(labels: set[str], path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(classes, ids): whole numbers in their order, and as ids; else sorted names without ids."""
    if not all(re.fullmatch(r"-?[0-9]+", label) for label in labels):
        return tuple(sorted(labels)), ()
    by_number: dict[int, str] = {}
    for label in labels:
        if int(label) in by_number:
            raise UserError(
                f"{path}: labels {by_number[int(label)]!r} and {label!r} are the same number. Write it "
                "one way."
            )
        by_number[int(label)] = label
    classes = tuple(by_number[number] for number in sorted(by_number))
    return classes, classes
