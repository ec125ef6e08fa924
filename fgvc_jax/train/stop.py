"""Stopping on purpose: Ctrl-C and SIGTERM become a request that is met where everything can be saved."""

import os
import signal

import jax


class Interrupted(Exception):
    """The run was asked to stop and has saved where it is.

    Attributes:
      signal: the number of the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class Stop:
    """While it is entered, SIGINT and SIGTERM set `requested`; a second Ctrl-C stops at once.

    Of several processes each must stop at the same step, which jax.distributed's own handler of SIGTERM sees
    to (`Checkpoints.preempted`); Ctrl-C is passed on to it as SIGTERM.
    """

    def __init__(self):
        self.requested = 0
        self._passed_on = False

    def __enter__(self):
        if jax.process_count() == 1:
            handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM), self._ask)
        else:
            handlers = {signal.SIGINT: self._pass_on}
        self._before = {number: signal.signal(number, ask) for number, ask in handlers.items()}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, _):
        if self.requested == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = number

    def _pass_on(self, number, _):
        if self._passed_on:
            raise KeyboardInterrupt
        self._passed_on = True
        os.kill(os.getpid(), signal.SIGTERM)

    def check(self) -> None:
        """Raises Interrupted if a stop was requested; called where nothing has to be saved."""
        if self.requested:
            raise Interrupted(self.requested)
