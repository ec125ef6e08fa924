"""A trace of a few training steps, to look at in xprof."""

import contextlib
import logging
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fgvc_jax.errors import UserError

log = logging.getLogger(__name__)


class Steps(NamedTuple):
    """From the first to the last, both of them in; counted from 1."""

    first: int
    last: int


def steps(text: str, where: str) -> Steps | None:
    """'20:25' as numbers; None for ''.

    Raises:
      UserError: another text, a step 0, or a last one before the first.
    """
    if not str(text).strip():
        return None
    match = re.fullmatch(r"\s*([0-9]+)\s*:\s*([0-9]+)\s*", str(text))
    found = Steps(*map(int, match.groups())) if match else None
    if not found or not 1 <= found.first <= found.last:
        raise UserError(
            f"{where} = {text!r} names no steps: give the first and the last, counted from 1, such as "
            "'20:25', or '' for no trace."
        )
    return found


class Profile:
    """Traces the steps of a window that are taken while it is entered; leaving it ends the trace.

    A trace holds what the host and the devices of this process did, and marks each step as 'train' with its
    number.
    """

    def __init__(self, window: Steps | None, folder: str | os.PathLike = ""):
        """Args: window, None for no trace; folder, for the trace, made where one begins."""
        self._window, self._folder = window, Path(folder)
        self._traced: list[int] = []
        self._open = False

    def __enter__(self) -> "Profile":
        return self

    def step(self, number: int) -> contextlib.AbstractContextManager:
        """To be entered around everything of a step on the host."""
        if not self._window or not self._window.first <= number <= self._window.last:
            return contextlib.nullcontext()
        if not self._open:
            jax.profiler.start_trace(self._folder)
            self._open = True
        self._traced.append(number)
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def after(self, number: int, results: Any) -> None:
        """After a step; waits for its results, arrays in a tree, where it is the last of the window."""
        if self._open and number == self._window.last:
            jax.block_until_ready(results)
            self._end()

    def _end(self) -> None:
        self._open = False
        jax.profiler.stop_trace()
        log.info("  trace of steps %s to %s: %s", self._traced[0], self._traced[-1], self._folder)

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if self._open:
            self._end()
        elif self._window and not self._traced and kind is None:
            log.info(
                "  no trace: no step from %s to %s (config.log.profile) was taken", *self._window
            )


NEVER = Profile(None)
