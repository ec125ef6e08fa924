"""What lies in folders, found without a call to the system for each file."""

import functools
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fgvc_jax.data.sources.images import EXTENSIONS
from fgvc_jax.data.sources.names import few
from fgvc_jax.errors import UserError


def is_image(name: str) -> bool:
    """By its extension."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def entries(folder: str | os.PathLike) -> tuple[list[str], list[str]]:
    """Sorted names of the (folders, files) in a folder; hidden ones are ignored."""
    folders, files = [], []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be searched for images: {error.strerror}.") from None
    return sorted(folders), sorted(files)


def listed(folder: str) -> frozenset[str]:
    """All names in a folder; none where it cannot be read."""
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()


def images_below(root: Path, folder: str, other: Counter) -> list[str]:
    """The images of root/folder at any depth, relative to root, in order of the parts of their paths.

    Args:
      other: counts files that are no images, by extension.
    """
    found, todo = [], [folder]
    while todo:
        at = todo.pop()
        folders, files = entries(root / at)
        todo += [f"{at}/{name}" for name in folders]
        for name in files:
            if is_image(name):
                found.append(f"{at}/{name}")
            else:
                other[os.path.splitext(name)[1].lower()] += 1
    return sorted(found, key=lambda file: file.split("/"))


def directory(root: str | os.PathLike, what: str) -> Path:
    """The folder, if there is one; else a UserError that says what was expected there."""
    root = Path(root).expanduser()
    if not root.is_dir():
        found = "is a file, not a directory" if root.exists() else "does not exist"
        raise UserError(f"Image folder {root} {found}. Expected there:\n{what}")
    return root


def present(root: str | os.PathLike, files: Iterable[str], where: str) -> None:
    """Raises UserError unless all files are there.

    Args:
      root: the folder that the files are relative to.
      where: what lists them, for the message.
    """
    names = functools.cache(lambda folder: listed(os.path.join(root, folder)))
    files = list(files)
    missing = [f for f in files if os.path.basename(f) not in names(os.path.dirname(f))]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(files):,} images that {where} lists are not in {root}: "
            f"{few(missing)}. Bring them, or take them from the list."
        )
