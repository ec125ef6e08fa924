"""The one exception that means "the user can mend this", and the nearest name for its message."""

import difflib
from collections.abc import Iterable


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
