"""The one exception that means "the user can mend this", and checks of single values that raise it."""

import difflib
import re
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
