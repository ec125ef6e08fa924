"""Named numbers over steps, as JSON lines, for TensorBoard and for Weights & Biases."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from fgvc_jax.files import plain
from fgvc_jax.tracking.wandb import Wandb


class Writer:
    """Appends to `<directory>/metrics.jsonl`, to TensorBoard events in the same directory and to `wandb`.

    One line holds {"step": int, "kind": str, "time": seconds since 1970, name: number, ...}; a
    number that is not finite is null there. Each line is on its way to the disk when `write`
    returns. To be used by one process only.
    """

    def __init__(
        self, directory: str | os.PathLike, tensorboard: bool = True, wandb: Wandb | None = None
    ):
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._path = self._directory / "metrics.jsonl"
        self._file: TextIO | None = None
        self._tensorboard = tensorboard
        self._wandb = wandb
        self._events: Any = None  # tensorboard's writer, imported at the first number

    def write(self, step: int, values: Mapping[str, float], kind: str = "train") -> None:
        """Writes named numbers of one `kind` ('train', 'val', ...)."""
        values = {name: float(value) for name, value in values.items()}
        line = {"step": int(step), "kind": kind, "time": round(time.time(), 3)}
        line |= plain(values)
        if self._file is None:
            self._file = open(self._path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        if self._tensorboard:
            if self._events is None:
                from tensorboard.summary import Writer as EventWriter

                self._events = EventWriter(str(self._directory))
            for name, x in values.items():
                self._events.add_scalar(f"{kind}/{name}", x, int(step))
        if self._wandb is not None:
            self._wandb.write(step, {f"{kind}/{name}": x for name, x in values.items()})

    def truncate(self, step: int) -> None:
        """Drops the lines after `step`; to be called when a run resumes from there.

        The last line of a run that was killed may be torn; it goes too. The file is replaced in one
        move. TensorBoard drops such points by itself when it reads the next events.
        """
        self._close_files()
        if not self._path.exists():
            return
        kept = [line for line in self._path.read_text("utf-8").splitlines() if _upto(line, step)]
        new = self._path.with_suffix(".new")
        new.write_text("".join(line + "\n" for line in kept), "utf-8")
        os.replace(new, self._path)

    def flush(self) -> None:
        """Hands the lines and events buffered so far to the system."""
        for stream in (self._file, self._events):
            if stream is not None:
                stream.flush()

    def close(self) -> None:
        """Closes the files and the run of Weights & Biases; a later `write` opens them again."""
        self._close_files()
        if self._wandb is not None:
            self._wandb.close()

    def _close_files(self) -> None:
        for stream in (self._file, self._events):
            if stream is not None:
                stream.close()
        self._file = self._events = None


def _upto(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
