"""Stopping on purpose: Ctrl-C and SIGTERM become a request that is met where everything can be saved."""

import signal


class Interrupted(Exception):
    """The run was asked to stop and has saved where it is.

    Attributes:
      signal: the number of the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class Stop:
    """While it is entered, SIGINT and SIGTERM set `requested`; a second Ctrl-C stops at once."""

    def __init__(self):
        self.requested = 0

    def __enter__(self):
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, _):
        if self.requested == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = number

    def check(self) -> None:
        """Raises Interrupted if a stop was requested; called where nothing has to be saved."""
        if self.requested:
            raise Interrupted(self.requested)
