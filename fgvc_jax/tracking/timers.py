"""Wall time of a phase by kind."""

import dataclasses
import time


@dataclasses.dataclass
class Seconds:
    """Wall time of a phase by kind."""

    compile: float = 0.0
    data_wait: float = 0.0
    steps: float = 0.0
    evaluate: float = 0.0
    save: float = 0.0

    def measure(self, kind: str) -> "_Timer":
        return _Timer(self, kind)


class _Timer:
    def __init__(self, seconds: Seconds, kind: str):
        self.seconds, self.kind = seconds, kind

    def __enter__(self):
        self.start = time.monotonic()

    def __exit__(self, *_):
        passed = time.monotonic() - self.start
        setattr(self.seconds, self.kind, getattr(self.seconds, self.kind) + passed)
