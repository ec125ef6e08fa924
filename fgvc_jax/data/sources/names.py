"""Names of splits and classes, as those who made the data call them."""

import difflib
import re
from collections.abc import Sequence

_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
_AROUND = re.compile(r"^(images?|imgs?)[ _-]|[ _-]?(images?|imgs?|set|data|split)$")


def split_of(name: str) -> str | None:
    """'train', 'val', 'test' for the usual spellings ('Valid', 'val_images', 'test set'), else None."""
    return _SPLIT_OF.get(_AROUND.sub("", name.strip().lower()))


def split_ids(folders: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names and ids of folders that are all called `<classID>_<className>`.

    Returns:
      (names, ids): ('04780_Lynx lynx', ...) -> ('Lynx lynx', ...), ('04780', ...). Folders of which
      one is called otherwise, or two have the same id, are their own names, with ids (). Where two
      names are the same the folders' names are kept.
    """
    matches = [re.fullmatch(r"(\d+)_(.+)", folder, re.DOTALL) for folder in folders]
    ids = tuple(match[1] for match in matches if match)
    if len(set(ids)) < len(folders):
        return tuple(folders), ()
    names = tuple(match[2] for match in matches)
    return (names if len(set(names)) == len(names) else tuple(folders)), ids


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name that is most like this one."""
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]


def few(names: Sequence[str]) -> str:
    """The first ten, and how many more."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
