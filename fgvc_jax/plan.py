"""The cost of a run, before its first step."""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fgvc_jax import mesh as meshes
from fgvc_jax.context.models import Models, abstract_backbone, dtype_of
from fgvc_jax.phases._base import Cost, Phase, Result
from fgvc_jax.tracking.progress import duration
from fgvc_jax.train import tree


def costs(
    phases: Sequence[Phase], models: Models, sizes: dict[str, int], done: dict[str, Result]
) -> dict[str, Cost]:
    """The cost of each phase, by name.

    Args:
      sizes: images by split.
      done: results of the finished phases.
    """
    result: dict[str, Cost] = {}
    known: dict[str, Result] = {}
    for phase in phases:
        result[phase.name] = phase.cost(models, sizes, known)
        known[phase.name] = done.get(phase.name) or result[phase.name].expected
    return result


def lines(costs: dict[str, Cost], second: float, done: dict[str, Result]) -> list[str]:
    """The plan as text.

    Args:
      second: seconds of a forward pass of one image.
    """
    result = [
        "plan: images through a backward pass (and forward only), time estimated from a forward pass"
    ]
    for name, cost in costs.items():
        images = f"{cost.images:,}" if cost.images else "-"
        forward = f"(+ {cost.forward:,})" if cost.forward else ""
        steps = f"{cost.steps:,} steps" if cost.steps else ""
        took = f"about {duration(cost.passes * second)}" if cost.passes else ""
        took = "done" if name in done else took
        result.append(f"  {name:<12}{images:>14} {forward:<14}{steps:>16}  {took}".rstrip())
    total = sum(cost.passes for name, cost in costs.items() if name not in done) * second
    return [*result, f"  {'all':<12}{'':>46} about {duration(total)}"]


def seconds_per_image(models: Models, images: int = 16) -> float:
    """Time of one image's forward pass over all devices, measured on a few random ones."""
    dtype, mesh, side = dtype_of(models.config), models.mesh, models.view.size
    static, params, batch_stats = tree.split(abstract_backbone(models.config))
    images = -(-images // mesh.size) * mesh.size
    arrays = jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), (params, batch_stats))
    x = jax.device_put(jnp.ones((images, side, side, 3), dtype), NamedSharding(mesh, meshes.BATCH))
    arrays = jax.device_put(arrays, NamedSharding(mesh, P()))
    forward = jax.jit(lambda arrays, x: tree.merge(static, *arrays)(x).pooled)
    forward(arrays, x).block_until_ready()
    times = []
    for _ in range(3):
        start = time.monotonic()
        forward(arrays, x).block_until_ready()
        times.append(time.monotonic() - start)
    return min(times) / images
