"""Reduce-on-plateau and early stopping: what validation decides while a phase runs.

It is part of the state, so a resumed run decides as the uninterrupted one does. The arrays change on the host
at an evaluation; the train step only reads `rate_factor`.
"""

from typing import NamedTuple

import numpy as np

Plateau = dict[str, np.ndarray]
DROPS = 16  # that are remembered by their step


class Patience(NamedTuple):
    """Evaluations in a row without a better one.

    Attributes:
      stop: that end the phase; 0 = never.
      drop: after more than so many the learning rate is multiplied by `factor`; 0 = never.
    """

    stop: int = 0
    drop: int = 0
    factor: float = 0.1


NEVER = Patience()


def start() -> Plateau:
    return {
        "best": np.array(-np.inf, np.float32),  # of the selection metric, higher is better
        "since_best": np.array(0, np.int32),  # evaluations
        "since_drop": np.array(0, np.int32),  # evaluations since the best or the last drop
        "rate_factor": np.array(1.0, np.float32),
        "drops": np.full(DROPS, -1, np.int32),  # the steps after which the rate was multiplied
    }


def after_evaluation(plateau: Plateau, selection: float, step: int, patience: Patience) -> Plateau:
    """The state after an evaluation at a step.

    The learning rate drops once more than `patience.drop` evaluations in a row were no better than the
    best, as torch's ReduceLROnPlateau with threshold 0 does.
    """
    better = np.float32(selection) > plateau["best"]  # as it is stored, so that equal is equal
    since_drop = 0 if better else int(plateau["since_drop"]) + 1
    rate_factor, drops = float(plateau["rate_factor"]), np.array(plateau["drops"])
    if patience.drop and since_drop > patience.drop:
        since_drop, rate_factor = 0, rate_factor * patience.factor
        free = np.flatnonzero(drops < 0)[:1]
        drops[free] = step
    return {
        "best": np.array(max(selection, float(plateau["best"])), np.float32),
        "since_best": np.array(0 if better else int(plateau["since_best"]) + 1, np.int32),
        "since_drop": np.array(since_drop, np.int32),
        "rate_factor": np.array(rate_factor, np.float32),
        "drops": drops,
    }


def is_over(plateau: Plateau, patience: Patience) -> bool:
    """Whether early stopping is due."""
    return bool(patience.stop) and int(plateau["since_best"]) >= patience.stop


def drops(plateau: Plateau) -> list[int]:
    """The steps after which the learning rate was multiplied."""
    return [int(step) for step in plateau["drops"] if step >= 0]
