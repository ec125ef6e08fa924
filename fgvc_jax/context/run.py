"""What phases share of the run itself: the config, the folder, the wish to stop, earlier results."""

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from fgvc_jax.train.stop import Stop


class Run:
    """One run over the phases of a config; made once, phases write into `directory(phase)` only.

    Attributes:
      results: by phase, DONE.json of those that came before.
      dry_run: whether it takes a few images only, to see that everything fits.
      later_seconds: estimated time of the phases after the one that runs; None where nothing is known.
      main: whether this is the process that writes.
    """

    def __init__(self, config: ConfigDict, workdir: Path, stop: Stop, dry_run: bool = False):
        self.config, self.workdir, self.stop, self.dry_run = config, workdir, stop, dry_run
        self.results: dict[str, dict[str, Any]] = {}
        self.later_seconds: float | None = None
        self.main = jax.process_index() == 0

    def directory(self, phase: str) -> Path:
        path = self.workdir / phase
        path.mkdir(parents=True, exist_ok=True)
        return path
