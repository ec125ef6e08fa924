"""A whole split through the jitted forward pass: padded, masked, every example exactly once."""

from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np

from fgvc_jax.data import sampler
from fgvc_jax.data.feed import Feed, gather


def predict_all(
    step: Callable,
    weights: dict[str, Any],
    feed: Feed,
    index: np.ndarray,
    batch: int,
    seed: int = 0,
    check: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:
    """Outputs of `predict_step` for every row of an index, in order.

    Args:
      step: from `fgvc_jax.train.step.predict_step`.
      weights: {'params', 'stats'}.
      index: int [N, V], the images of each example; N > 0.
      batch: examples at a time over all devices.
      seed: for a step with random views.
      check: called before each batch; may raise to stop.

    Returns:
      The step's dictionary with leading axis N, on the host.
    """
    parts: list[dict[str, np.ndarray]] = []
    pending = None

    def read():
        if pending is not None:
            outputs, mask = pending
            parts.append({name: x[mask] for name, x in jax.device_get(outputs).items()})

    batches = sampler.in_order(len(index), batch)
    order = grain.MapDataset.source([rows for rows, _ in batches])
    for number, examples in enumerate(feed.stream(order, {"index": index})):
        check()
        pixels, sizes = gather(feed.resident, examples, feed.mesh)
        outputs = step(weights["params"], weights["stats"], pixels, sizes, np.uint32(seed), number)
        read()  # of the batch before, while this one runs
        pending = (outputs, batches[number][1])
    read()
    result = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert all(len(column) == len(index) for column in result.values())
    return result
