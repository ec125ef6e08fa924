"""Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) of a part of a module."""

from typing import Any

import jax
from flax import nnx

KINDS = ("none", "products", "full")


def kind_of(saved: str | bool) -> str:
    """The kind that an older config or model.json says by yes or no."""
    return {True: "full", False: "none"}.get(saved, saved)


def call(kind: str, block: nnx.Module, *args: Any) -> Any:
    """block(*args), some of whose inner results are computed again for the gradient.

    Outputs, gradients and the running statistics, written once, are those of the plain call. On a CPU it
    costs time and saves no memory: XLA's CPU compiler drops the barrier between the passes and computes both
    at once.

    Args:
      kind: 'none': all that the gradient needs is kept. 'products': results of dense products and
        convolutions are kept, the rest (normalisation, activations, attention weights) is computed again.
        'full': only the arguments are kept.
      args: arrays, or trees of them.

    Returns:
      the block's result.
    """
    if kind == "none":
        return block(*args)
    graphdef, state = nnx.split(block)

    def run(state: dict[str, Any], *args: Any) -> tuple[Any, dict[str, Any]]:
        inner = nnx.merge(graphdef, state)
        out = inner(*args)
        return out, nnx.to_pure_dict(nnx.state(inner, nnx.Not(nnx.Param)))

    policy = _keeps_products if kind == "products" else None
    out, written = jax.checkpoint(run, policy=policy)(nnx.to_pure_dict(state), *args)
    values = dict(nnx.traversals.flatten_mapping(written))
    for path, variable in nnx.to_flat_state(nnx.state(block, nnx.Not(nnx.Param))):
        # Raw, because the indexed write makes tracing quadratic on jax 0.10.
        variable.set_raw_value(values[path])
    return out


def _keeps_products(primitive, *args: Any, **parameters: Any) -> bool:
    if primitive.name == "conv_general_dilated":
        return True
    # Those of attention have a batch axis: images x heads x tokens^2 numbers, the largest arrays of all.
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **parameters)
