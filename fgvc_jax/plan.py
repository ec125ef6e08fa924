"""What a run will cost, before the first step; and the same run made tiny."""

import dataclasses
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from fgvc_jax import config as configs
from fgvc_jax.data.feed import BATCH
from fgvc_jax.data.manifest import Manifest, Split
from fgvc_jax.phases.context import Context, abstract_backbone
from fgvc_jax.phases.train import cost_of
from fgvc_jax.tracking.progress import duration
from fgvc_jax.train import mesh as meshes
from fgvc_jax.train import tree


class PhaseCost(NamedTuple):
    backward: int  # images through a backward pass
    forward: int  # images through a forward pass alone
    steps: int
    seconds: float  # rough: forward passes, a backward pass counted as two; without compiling


def costs(context: Context, done: dict[str, dict]) -> dict[str, PhaseCost]:
    """The cost of each phase; pairs that are not yet mined are counted as 2Q-1 an image."""
    config, result = context.config, {}
    splits = {name: len(s.labels) for name, s in context.manifest.splits.items()}
    known = dict(context.results)
    for name in configs.phases(config):
        section = config[name]
        if "batch" in section:
            meshes.check_batch(section.batch, context.mesh, f"config.{name}.batch")
        backward = forward = steps = 0
        if section.kind == "train":
            examples, validation = splits["train"], splits.get("val", 0)
            if section.pairs:
                mined = done.get(section.pairs) or context.results.get(section.pairs) or {}
                width = (
                    2 * min(config[section.pairs].top_classes, len(context.manifest.classes)) - 1
                )
                examples = mined.get("train", {}).get("pairs") or examples * width
                validation = 2 * (mined.get("val", {}).get("pairs") or validation * width)
            cost = cost_of(context, name, examples)
            steps, backward = cost.steps, cost.images
            context.results[name] = {"images": backward}  # what later lengths refer to
            every = max(1, cost.length(section.eval_every, f"config.{name}.eval_every"))
            forward = validation * max(1, round(steps / every))
        elif section.kind == "embed":
            forward = splits["train"] + splits.get("val", 0)
        elif section.kind == "evaluate":
            forward = 4 * (splits.get("val", 0) + splits.get("test", 0)) + splits["train"]
        result[name] = PhaseCost(backward, forward, steps, 0.0)
    context.results = known
    return result


def timed(context: Context, costs: dict[str, PhaseCost]) -> dict[str, PhaseCost]:
    """The costs with seconds: a backward pass costs two forward passes, none where the backbone is frozen."""
    second, result = seconds_per_image(context), {}
    for name, cost in costs.items():
        section = context.config[name]
        frozen = section.kind == "train" and tree.matches(section.freeze, "backbone/x")
        passes = cost.backward * (1 if frozen else 3) + cost.forward
        if section.kind == "train" and section.sam_rho:
            passes += cost.backward * (1 if frozen else 3)
        result[name] = cost._replace(seconds=passes * second)
    return result


def lines(costs: dict[str, PhaseCost], done: dict) -> list[str]:
    result = [
        "plan: images through a backward pass (and forward only), time estimated from a forward pass"
    ]
    for name, cost in costs.items():
        images = f"{cost.backward:,}" if cost.backward else "-"
        forward = f"(+ {cost.forward:,})" if cost.forward else ""
        steps = f"{cost.steps:,} steps" if cost.steps else ""
        seconds = (
            "done" if name in done else f"about {duration(cost.seconds)}" if cost.seconds else ""
        )
        result.append(f"  {name:<12}{images:>14} {forward:<14}{steps:>16}  {seconds}".rstrip())
    total = sum(cost.seconds for name, cost in costs.items() if name not in done)
    return [*result, f"  {'all':<12}{'':>46} about {duration(total)}"]


def later_seconds(costs: dict[str, PhaseCost], todo: list[str], name: str) -> float:
    return sum(costs[later].seconds for later in todo[todo.index(name) + 1 :])


def seconds_per_image(context: Context, images: int = 16) -> float:
    """Time of one image's forward pass over all devices, measured on a few random ones."""
    static, params, stats = tree.split(abstract_backbone(context.config, context.dtype()))
    images = -(-images // context.mesh.size) * context.mesh.size
    arrays = jax.tree.map(lambda x: jnp.full(x.shape, 0.01, x.dtype), (params, stats))
    x = jnp.ones((images, context.view.size, context.view.size, 3), context.dtype())
    x = jax.device_put(x, NamedSharding(context.mesh, BATCH))
    arrays = jax.device_put(arrays, NamedSharding(context.mesh, P()))
    forward = jax.jit(lambda arrays, x: tree.merge(static, *arrays)(x).pooled)
    forward(arrays, x).block_until_ready()
    times = []
    for _ in range(3):
        start = time.monotonic()
        forward(arrays, x).block_until_ready()
        times.append(time.monotonic() - start)
    return min(times) / images


def shrink(config: ConfigDict) -> ConfigDict:
    """Two steps of every training phase, for --dry_run."""
    config = config.copy_and_resolve_references()
    for name in configs.phases(config):
        if config[name].kind == "train":
            config[name].length = "2 steps"
            config[name].eval_every = "2 steps"
    return config


def few_images(manifest: Manifest, limit: int = 64) -> Manifest:
    """At most `limit` images a split, from as few classes as fill it, so that there are pairs to mine."""
    splits = {}
    for name, split in manifest.splits.items():
        order = np.argsort(split.labels, kind="stable")
        by_class = [order[split.labels[order] == label][:8] for label in np.unique(split.labels)]
        chosen = np.sort(np.concatenate(by_class)[:limit])
        splits[name] = Split(tuple(split.files[i] for i in chosen), split.labels[chosen])
    return dataclasses.replace(manifest, splits=splits)


def train_and_val(manifest: Manifest) -> Manifest:
    """The manifest with validation joined to train."""
    train, val = manifest.splits["train"], manifest.splits["val"]
    joined = Split(train.files + val.files, np.concatenate([train.labels, val.labels]))
    rest = {name: split for name, split in manifest.splits.items() if name not in ("train", "val")}
    return dataclasses.replace(manifest, splits={"train": joined, **rest})


def refit(config: ConfigDict, results: dict[str, dict], manifest: Manifest) -> ConfigDict:
    """The config with each training phase as long, in epochs, as its best checkpoint by validation."""
    config = config.copy_and_resolve_references()
    train, val = (len(manifest.splits[split].labels) for split in ("train", "val"))
    for name in configs.phases(config):
        if config[name].kind == "train":
            best = results[name]["validation"]["best"]["step"]
            config[name].length = f"{max(1, round(best * (train + val) / train))} steps"
            config[name].patience = 0
    return config
