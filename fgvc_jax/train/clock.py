"""Checkpoints by wall time, so that a killed training loses minutes and not an epoch."""

import math
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils


class Clock:
    """Whether so many seconds have passed since the last checkpoint; the first process answers for all."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
        """Args: seconds, infinite for never; now, the clock."""
        self._seconds, self._now, self._last = seconds, now, now()

    def due(self, together: bool) -> bool:
        """Args: together, whether all processes ask at this step; where they do not, several get no."""
        if math.isinf(self._seconds):
            return False
        passed = self._now() - self._last >= self._seconds
        if jax.process_count() == 1:
            return passed
        return together and bool(multihost_utils.broadcast_one_to_all(np.bool_(passed)))

    def restart(self) -> None:
        """A checkpoint was just written."""
        self._last = self._now()


NEVER = Clock(math.inf)
