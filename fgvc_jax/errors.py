"""The one exception that means "the user can mend this", and checks of single values that raise it."""

import contextlib
import difflib
import os
import re
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """A mistake in a config, a data set or a file. Printed as one message, without a traceback.

    The text says what was wrong, where (file, key, id), what is allowed, and what to do.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean 'x'? Known: ...' to end an error message with."""
    known = sorted(str(k) for k in known)
    if not known:
        return "."
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return (f"; did you mean {near[0]!r}?" if near else ".") + f" Known: {', '.join(known)}."


def choose(value: str, known: Iterable[str], where: str) -> str:
    """The value, if it is one of those known; else a UserError that names the nearest."""
    if value not in known:
        raise UserError(f"{where} = {value!r} is unknown{did_you_mean(value, known)}")
    return value


def at_least(value: float, lowest: float, where: str) -> None:
    """UserError for a value below the lowest."""
    if not value >= lowest:
        raise UserError(f"{where} = {value}; it must be at least {lowest}.")


def check_patterns(patterns: Iterable[str], where: str) -> None:
    """UserError for one that is no regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"{where}: {pattern!r} is not a regular expression: {error}.") from None


_DISK = ("No space left on device", "Disk quota exceeded", "Read-only file system")


@contextlib.contextmanager
def disk_explained(folder: str | os.PathLike) -> Iterator[None]:
    """Turns what a full or read-only disk makes anything raise into a UserError.

    Args:
      folder: in which the block writes.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tensorstore raises a ValueError with the system's words in it
        said = next((words for words in _DISK if words in str(error)), "")
        if not said:
            raise
        line = next(line for line in str(error).splitlines() if said in line)
        raise UserError(
            f"{said}, while files were written in {folder} ({line.strip()[:300]}). What was saved before is "
            "intact: make room, or make the disk writable, and the same command goes on."
        ) from error
