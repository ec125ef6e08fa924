"""A whole split through the jitted forward pass: padded, masked, every example exactly once."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np


def predict_all(
    step: Callable,
    weights: dict[str, Any],
    batches: Iterable[tuple[Any, Any, np.ndarray]],
    *,
    seed: int = 0,
    check: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
    """Outputs of `predict_step` for every example of some batches, in order.

    Args:
      step: from `fgvc_jax.train.step.predict_step`.
      weights: {'params', 'batch_stats'}.
      batches: (pixels, sizes, mask bool [B]) of each batch; only masked examples are kept. At least one.
      seed: for a step with random views.
      check: called before each batch; may raise to stop.

    Returns:
      The step's dictionary with one row an example, on the host.
    """
    parts: list[dict[str, np.ndarray]] = []
    pending = None

    def read() -> None:
        if pending is not None:
            outputs, mask = pending
            parts.append({name: x[mask] for name, x in jax.device_get(outputs).items()})

    params, batch_stats = weights["params"], weights["batch_stats"]
    for number, (pixels, sizes, mask) in enumerate(batches):
        check()
        outputs = step(params, batch_stats, pixels, sizes, np.uint32(seed), number)
        read()  # of the batch before, while this one runs
        pending = (outputs, mask)
    read()
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
