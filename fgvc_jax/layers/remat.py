"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) of a part of a module."""

from typing import Any

import jax
from flax import nnx


def call(enabled: bool, block: nnx.Module, *args: Any) -> Any:
    """block(*args); where `enabled`, the block's inner results are computed again for the gradient.

    Between the two passes only the arguments are kept. Outputs, gradients and the running
    statistics, written once, are those of the plain call. On a CPU it costs time and saves no
    memory: XLA's CPU compiler drops the barrier between the passes and computes both at once.

    Args:
      args: arrays, or trees of them.

    Returns:
      the block's result.
    """
    if not enabled:
        return block(*args)
    graphdef, state = nnx.split(block)

    def run(state: dict[str, Any], *args: Any) -> tuple[Any, dict[str, Any]]:
        inner = nnx.merge(graphdef, state)
        out = inner(*args)
        return out, nnx.to_pure_dict(nnx.state(inner, nnx.Not(nnx.Param)))

    out, written = jax.checkpoint(run)(nnx.to_pure_dict(state), *args)
    values = dict(nnx.traversals.flatten_mapping(written))
    for path, variable in nnx.to_flat_state(nnx.state(block, nnx.Not(nnx.Param))):
        # Raw, because the indexed write makes tracing quadratic on jax 0.10.
        variable.set_raw_value(values[path])
    return out
