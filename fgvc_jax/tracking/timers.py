"""Wall time of a training phase, by what it was spent on."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator


@dataclasses.dataclass
class Seconds:
    """Wall time in seconds, by kind; `vars(seconds)` gives them by name.

    Attributes:
      compile: compiling the train step.
      data_wait: waiting for the next batch.
      steps: dispatching steps, and waiting for them.
      evaluate: validation.
      save: writing checkpoints.
    """

    compile: float = 0.0
    data_wait: float = 0.0
    steps: float = 0.0
    evaluate: float = 0.0
    save: float = 0.0

    @contextlib.contextmanager
    def measure(self, kind: str) -> Iterator[None]:
        """Adds the time inside the `with` block to one kind, also where the block raises."""
        before, start = getattr(self, kind), time.monotonic()
        try:
            yield
        finally:
            setattr(self, kind, before + time.monotonic() - start)
