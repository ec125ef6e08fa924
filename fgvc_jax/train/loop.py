"""The training loop: reads top to bottom, and never waits for the device except where it must.

Metrics of a step are read after the next one has been dispatched. Before a checkpoint is written all of them
are read, so that nothing that came out of a NaN is ever saved.
"""

import math
import signal
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from fgvc_jax.errors import UserError
from fgvc_jax.tracking.progress import Progress
from fgvc_jax.tracking.timers import Seconds
from fgvc_jax.tracking.writers import Writer
from fgvc_jax.train import clock as clocks
from fgvc_jax.train import plateau, profile
from fgvc_jax.train.checkpoint import METRIC, Checkpoints, Unlogged
from fgvc_jax.train.clock import Clock
from fgvc_jax.train.plateau import NEVER, Patience
from fgvc_jax.train.profile import Profile
from fgvc_jax.train.step import State
from fgvc_jax.train.stop import Interrupted, Stop


class Milestones(NamedTuple):
    """Where a phase begins and ends, and what happens on the way, in steps.

    Attributes:
      first: steps already done.
      total: of the whole phase.
      evaluate: validation and a checkpoint at its multiples and at the end.
      log: a line of metrics at its multiples.
      keep: a checkpoint at its multiples too; 0 = none.
      embed: where embeddings are written, 0 for before the first step.
    """

    first: int
    total: int
    evaluate: int
    log: int
    keep: int = 0
    embed: frozenset[int] = frozenset()


class Tracker(NamedTuple):
    """Who is told how far it is: the bar, the timers and, in the first process, the files."""

    progress: Progress
    seconds: Seconds
    writer: Writer | None = None


def logged(first: int, unlogged: Unlogged) -> int:
    """The last step whose numbers stand in the log when training goes on from a checkpoint.

    A later line may be there: one that was written after the checkpoint, and is written again.

    Args:
      first: the checkpoint's step.
      unlogged: the metrics that it holds.
    """
    return unlogged[0][0] - 1 if unlogged else first


def fit(
    state: State,
    step_function: Callable,
    batches: Iterator,
    *,
    milestones: Milestones,
    evaluate: Callable[[State], dict[str, float] | None],
    checkpoints: Checkpoints,
    tracker: Tracker,
    stop: Stop,
    patience: Patience = NEVER,
    clock: Clock = clocks.NEVER,
    trace: Profile = profile.NEVER,
    unlogged: Unlogged = (),
    embed: Callable[[int, State], None] = lambda step, state: None,
) -> State:
    """Trains to the last milestone, or to an early stop, and returns the last state.

    Args:
      state: at `milestones.first`; its buffers are given away.
      step_function: (state, batch) -> (state, metrics).
      clock: when a checkpoint is due by wall time, besides those of the milestones.
      trace: which steps are traced.
      unlogged: metrics of the steps before the first one that belong to the same line of the log.
      evaluate: state -> metrics of validation with the key 'selection', or None where there is none.
      embed: (steps done, state) -> None. It comes before the checkpoint of its step, so that no resumed run
        lacks what it writes.

    Raises:
      UserError: a loss or gradient that is not finite, with the steps and the last good checkpoint.
      Interrupted: after a signal, when the state has been saved.
    """
    progress, seconds, writer = tracker
    first_step, total_steps, eval_every, log_every, keep_every, embed_at = milestones
    window = list(unlogged)
    waited, worked = seconds.data_wait, seconds.steps  # when the window began
    pending: tuple[int, dict] | None = None

    def read() -> None:
        nonlocal pending
        if pending is not None:
            number, metrics = pending
            window.append((number, {k: float(v) for k, v in jax.device_get(metrics).items()}))
            pending = None
            _check_finite(window, checkpoints)

    def log() -> None:
        nonlocal waited, worked
        if window:
            names = window[-1][1]
            means = {name: sum(m[name] for _, m in window) / len(window) for name in names}
            wait, work = seconds.data_wait - waited, seconds.steps - worked
            means["data_wait"] = wait / (
                wait + work
            )  # share of the time that the device may have idled
            waited, worked = seconds.data_wait, seconds.steps
            if writer:
                writer.write(window[-1][0], means, kind="train")
            progress.update(0, text=f"loss {means.get('loss', means.get('loss_1')):.4f}")
            window.clear()

    if plateau.is_over(
        state["plateau"], patience
    ):  # it had stopped early before it was interrupted
        return state
    if first_step == 0 and 0 in embed_at:
        with seconds.measure("evaluate"):
            embed(0, state)
    for number in range(first_step + 1, total_steps + 1):
        with trace.step(number):
            with seconds.measure("data_wait"):
                batch = next(batches)
            with seconds.measure("steps"):
                state, metrics = step_function(state, batch)
                read()  # of the step before, while this one runs
                pending = (number, metrics)
        trace.after(number, (state, metrics))
        progress.update()
        evaluating = number % eval_every == 0 or number == total_steps
        # Looked at once: a later signal waits for the next step.
        stopping = bool(stop.requested) or checkpoints.preempted(number)
        logging = number % log_every == 0
        saving = evaluating or stopping or (keep_every and number % keep_every == 0)
        saving = saving or clock.due(together=logging)
        if logging and not evaluating:
            log()  # before `read`, so that lines do not depend on what else is saved
        if saving:
            with seconds.measure("steps"):
                read()
        if evaluating:
            log()
        if number in embed_at:
            with seconds.measure("evaluate"):
                embed(number, state)
        if evaluating:
            with seconds.measure("evaluate"):
                scores = evaluate(state)
            if scores is not None:
                before = jax.device_get(state["plateau"])
                decided = plateau.after_evaluation(before, scores[METRIC], number, patience)
                places = jax.tree.map(lambda x: x.sharding, state["plateau"])
                state["plateau"] = jax.device_put(decided, places)
                if writer:
                    writer.write(number, scores, kind="val")
                shown = ", ".join(f"{k} {v:.4g}" for k, v in scores.items() if k != METRIC)
                progress.write(f"  step {number}: validation {shown}")
        if saving:
            with seconds.measure("save"):
                checkpoints.save(number, state, scores if evaluating else None, window)
            clock.restart()
        if evaluating and plateau.is_over(state["plateau"], patience):
            progress.write(
                f"  stopped early at step {number}: no better in {patience.stop} evaluations"
            )
            break
        if stopping and number < total_steps:
            raise Interrupted(stop.requested or signal.SIGTERM)
    return state


def _check_finite(window, checkpoints: Checkpoints) -> None:
    number, metrics = window[-1]
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if bad:
        good = checkpoints.latest()
        where = f"step {good} in {checkpoints.directory}" if good else "none yet"
        raise UserError(
            f"{bad[0]} became {metrics[bad[0]]} at step {number} (logged window: steps {window[0][0]} to "
            f"{number}). Last good checkpoint: {where}. Lower the learning rate, lengthen the warm-up or "
            "clip the gradient (clip=1.0), and start with a new workdir."
        )
