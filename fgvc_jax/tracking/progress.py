"""How far a phase is: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import Any, TextIO


class Progress:
    """Counts the steps of one phase; a context manager.

    Shows images a second over the last half minute, and the time left for the phase and for the
    run. The first step is left out of the speed, because it compiles.

    Args:
      phase: its name.
      total_steps: of the whole phase.
      images_per_step: how many images a step costs (0: steps a second are shown instead).
      first_step: steps already done, when the phase resumes.
      later_seconds: estimated time of the phases after this one; None if there are none or nothing
        is known.
      stream: where to write, by default standard error; a bar where it is a terminal, else a line
        about every `every` seconds and one at the end.
      clock: seconds as a float.
    """

    def __init__(
        self,
        phase: str,
        total_steps: int,
        images_per_step: int,
        *,
        first_step: int = 0,
        later_seconds: float | None = None,
        stream: TextIO | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.phase, self.total_steps, self.images_per_step = phase, total_steps, images_per_step
        self.step = first_step
        self.later_seconds = later_seconds
        self._stream, self._every, self._clock = stream or sys.stderr, every, clock
        self._times: list[tuple[float, int]] = []  # (time, step) of the recent updates
        self._last_line = clock()
        self._text = ""
        self._bar: Any = None  # tqdm's
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total_steps,
                initial=first_step,
                desc=phase,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}",
            )

    def update(self, steps: int = 1, text: str = "") -> None:
        """`steps` more are done; `text` (a loss, say) is shown behind the numbers."""
        now = self._clock()
        self.step += steps
        self._text = text or self._text
        self._times.append((now, self.step))
        while len(self._times) > 2 and self._times[1][0] < now - 30:
            self._times.pop(0)
        if self._bar is not None:
            self._bar.set_postfix_str(self._numbers(), refresh=False)
            self._bar.update(steps)
        elif now - self._last_line >= self._every and self.step < self.total_steps:
            self._line(now)

    def write(self, text: str) -> None:
        """Prints a line of its own above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def images_per_second(self) -> float | None:
        """Measured speed, None before the second update."""
        rate = self._steps_per_second()
        return rate and rate * self.images_per_step

    def seconds_left(self) -> float | None:
        """Estimated time left in this phase, None before the second update."""
        rate = self._steps_per_second()
        return rate and (self.total_steps - self.step) / rate

    def close(self) -> None:
        """Ends the bar, or prints the last line."""
        if self._bar is not None:
            self._bar.close()
        else:
            self._line(self._clock())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _steps_per_second(self) -> float | None:
        if len(self._times) < 2:
            return None
        (t0, step0), (t1, step1) = self._times[0], self._times[-1]
        return (step1 - step0) / max(t1 - t0, 1e-9)

    def _numbers(self) -> str:
        parts = []
        rate, left = self._steps_per_second(), self.seconds_left()
        if rate is not None:
            speed, unit = (
                (rate * self.images_per_step, "images/s")
                if self.images_per_step
                else (rate, "steps/s")
            )
            parts.append(f"{speed:.3g} {unit}" if speed < 100 else f"{speed:.0f} {unit}")
            if self.step < self.total_steps:
                parts.append(f"{duration(left)} left")
            if self.later_seconds is not None:
                parts.append(f"run {duration(left + self.later_seconds)} left")
        return "  ".join([*parts, *([self._text] if self._text else [])])

    def _line(self, now: float) -> None:
        self._last_line = now
        share = self.step / max(self.total_steps, 1)
        line = f"{self.phase}  {self.step}/{self.total_steps}  {share:.0%}  {self._numbers()}"
        print(line.rstrip(), file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """Seconds as text: 0:07, 12:34, 1:02:03, 2 d 03:04."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
