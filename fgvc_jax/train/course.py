"""What validation decides while a phase runs: a lower learning rate, an early stop.

It is part of the state, so a resumed run decides as the uninterrupted one does. The arrays change on the host
at an evaluation; the train step only reads `rate_factor`.
"""

import numpy as np

Course = dict[str, np.ndarray]


def start() -> Course:
    return {
        "best": np.array(-np.inf, np.float32),  # of the selection metric, higher is better
        "since_best": np.array(0, np.int32),  # evaluations
        "since_drop": np.array(0, np.int32),  # evaluations since the best or the last drop
        "rate_factor": np.array(1.0, np.float32),
    }


def after_evaluation(
    course: Course, selection: float, *, plateau_patience: int = 0, factor: float = 0.1
) -> Course:
    """The course after an evaluation.

    With a patience the learning rate is multiplied by `factor` once more than `plateau_patience` evaluations
    in a row were no better than the best, as torch's ReduceLROnPlateau with threshold 0 does.
    """
    better = np.float32(selection) > course["best"]  # as it is stored, so that equal is equal
    since_drop = 0 if better else int(course["since_drop"]) + 1
    rate_factor = float(course["rate_factor"])
    if plateau_patience and since_drop > plateau_patience:
        since_drop, rate_factor = 0, rate_factor * factor
    return {
        "best": np.array(max(selection, float(course["best"])), np.float32),
        "since_best": np.array(0 if better else int(course["since_best"]) + 1, np.int32),
        "since_drop": np.array(since_drop, np.int32),
        "rate_factor": np.array(rate_factor, np.float32),
    }


def is_over(course: Course, patience: int) -> bool:
    """Whether an early stop is due."""
    return bool(patience) and int(course["since_best"]) >= patience
