"""A named data set before it is written: its classes, and a row for each image."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fgvc_jax.errors import UserError


class Download(NamedTuple):
    """An official file."""

    name: str
    url: str  # '' = no address that works without a form or a login
    bytes: int  # 0 = not known
    digest: str  # 'sha256:...' or 'md5:...'; '' = none is published


class Expected(NamedTuple):
    """The counts of the official list."""

    classes: dict[str, int]  # by label: {'label': 200}; Aircraft has three
    splits: dict[str, int]  # images: {'train': 5994, 'test': 5794}
    retrieval: tuple[int, int] = ()  # images of the first and of the second half of the classes


class Row(NamedTuple):
    """An image: the file it lies in, and what is written beside it."""

    split: str  # 'train', 'val', 'test'; 'all' where the set has folds
    name: str  # unique within the set: the official file name
    path: str
    values: dict[str, object]  # 'label' (0..C-1), 'id', 'bbox', ...; labels of all label sets


class Table(NamedTuple):
    """A whole data set.

    Attributes:
      classes: class names by label; the position is the label.
      rows: in the official order.
      shapes: of the float32 features beside the labels; None = any length. Boxes are
        (xmin, ymin, xmax, ymax) in pixels of the image, parts (x, y, visible), as published.
      metadata: 'ids' (the original id of each class of 'label'), 'banner' (rows at the bottom of
        each image that are no photo), 'retrieval' (True: the halves of the classes are the usual
        class-disjoint split), 'copy' (True: of class folders, not of the official list); for
        whoever reads the set: 'parts' (their names), 'hierarchy', 'nodes'.
    """

    classes: dict[str, tuple[str, ...]]
    rows: list[Row]
    shapes: dict[str, tuple[int | None, ...]]
    metadata: dict[str, object]


class Tree:
    """The files under some folders, found by the end of their path."""

    def __init__(self, roots: list[Path]):
        self.roots = roots
        self.paths: dict[str, list[tuple[int, str]]] = {}  # (depth, path) by file name
        for root in roots:
            for at, folders, files in os.walk(root, followlinks=True):
                folders[:] = sorted(f for f in folders if f[0] != "." and f != "__MACOSX")
                depth = len(Path(at).relative_to(root).parts)
                for file in files:
                    if file[0] != ".":
                        self.paths.setdefault(file, []).append((depth, f"{at}/{file}"))

    def has(self, tail: str) -> bool:
        return bool(self._matches(tail))

    def find(self, tail: str) -> Path:
        """The file whose path ends with `tail`, the one nearest to the top.

        Raises:
          UserError: there is none, or there are several at the same depth.
        """
        found = self._matches(tail)
        where = " and ".join(map(str, self.roots))
        if not found:
            raise UserError(f"no {tail} in {where}.")
        if len(found) > 1:
            raise UserError(
                f"{tail} stands {len(found)} times in {where}: {found[0]}, {found[1]}. "
                "Name the folder or the archive of one copy only."
            )
        return Path(found[0])

    def images(self, tails: list[str], listed_in: str) -> list[str]:
        """The paths of listed images; UserError with the first ten that are absent."""
        absent = [tail for tail in tails if not self.has(tail)]
        if absent:
            raise UserError(
                f"{len(absent):,} of the {len(tails):,} images that {listed_in} lists are absent: "
                f"{', '.join(absent[:10])}{', ...' if len(absent) > 10 else ''}. "
                "The archive or the copy is incomplete: get it again."
            )
        return [str(self.find(tail)) for tail in tails]

    def _matches(self, tail: str) -> list[str]:
        named = self.paths.get(tail.rpartition("/")[2], ())
        found = [(depth, path) for depth, path in named if path.endswith(f"/{tail}")]
        return [path for depth, path in found if depth == min(found)[0]]


def lines(path: Path) -> dict[str, str]:
    """A text list with a key and a value a line: '12 001.Black_footed_Albatross'.

    Raises:
      UserError: a line without a value or with a key that stood before, by its number.
    """
    found: dict[str, str] = {}
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        key, _, value = line.strip().partition(" ")
        if not value:
            raise UserError(f"{path.name}, line {number}: {line!r} has no value behind its key.")
        if key in found:
            raise UserError(f"{path.name}, line {number}: {key!r} stands twice.")
        found[key] = value.strip()
    return found


def same_keys(lists: dict[str, dict[str, str]]) -> None:
    """UserError unless all lists are about the same keys; they are named like their files."""
    (first, keys), *rest = lists.items()
    for name, other in rest:
        for a, b, lacking in ((keys, other, name), (other, keys, first)):
            missing = [key for key in a if key not in b]
            if missing:
                raise UserError(
                    f"{lacking} has no line for {missing[0]!r} ({len(missing):,} of {len(a):,} are "
                    f"missing), which {first if lacking == name else name} has. "
                    "The lists are not of one copy, or damaged: get them again."
                )


def numbers(text: str, count: int, where: str) -> list[float]:
    """'60.0 27.0 325.0 304.0' -> four floats."""
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != count:
        raise UserError(f"{where}: {text!r} is not {count} numbers.")
    return values


def mat(path: Path, *names: str) -> list[np.ndarray]:
    """Variables of a MATLAB file, without axes of length 1.

    Raises:
      UserError: the file cannot be read, or lacks one of them.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path, squeeze_me=True)
    except Exception as error:  # scipy raises anything on damaged data
        raise UserError(f"{path.name} cannot be read as a MATLAB file: {error}") from error
    missing = [name for name in names if name not in content]
    if missing:
        there = ", ".join(k for k in content if k[:2] != "__")
        raise UserError(f"{path.name} has no variable {missing[0]!r}; there are: {there}.")
    return [np.atleast_1d(content[name]) for name in names]


def label(value: object, count: int, where: str) -> int:
    """1..count -> 0..count-1."""
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if not 1 <= number <= count:
        raise UserError(f"{where}: class {value} is not in 1..{count}.")
    return number - 1
