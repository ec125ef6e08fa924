"""The same run made tiny (--dry_run), and trained again on train + val (protocol 'refit')."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from fgvc_jax import config as configs
from fgvc_jax import lengths, phases
from fgvc_jax.data.manifest import Manifest, Split
from fgvc_jax.errors import UserError

FEW_CLASSES = 8  # of a dry run


def shrink(config: ConfigDict) -> ConfigDict:
    """Two steps of every training phase. A P x K batch has no more classes than `few_images` keeps."""
    config = config.copy_and_resolve_references()
    for name in phases.trained(config):
        section = config[name]
        section.length = section.validation.every = "2 steps"
        if section.sampler.name == "classes_by_images":
            section.batch = min(section.batch, FEW_CLASSES * section.sampler.images_per_class)
    return config


def few_images(manifest: Manifest, limit: int = 64) -> Manifest:
    """At most `limit` images a split, eight a class, so that there are pairs to mine."""
    splits = {}
    for name, split in manifest.splits.items():
        order = np.argsort(split.labels, kind="stable")
        each = limit // FEW_CLASSES
        by_class = [order[split.labels[order] == x][:each] for x in np.unique(split.labels)]
        chosen = np.sort(np.concatenate(by_class)[:limit])
        splits[name] = Split(tuple(split.files[i] for i in chosen), split.labels[chosen])
    return dataclasses.replace(manifest, splits=splits)


def train_and_val(manifest: Manifest) -> Manifest:
    """The manifest with validation joined to train."""
    train, val = manifest.splits["train"], manifest.splits["val"]
    joined = Split(train.files + val.files, np.concatenate([train.labels, val.labels]))
    rest = {name: split for name, split in manifest.splits.items() if name not in ("train", "val")}
    return dataclasses.replace(manifest, splits={"train": joined, **rest})


def check_refit(config: ConfigDict, manifest: Manifest) -> None:
    """Raises UserError where protocol 'refit' has no validation to pick lengths on or no test to score."""
    if config.protocol == "refit" and not {"val", "test"} <= manifest.splits.keys():
        raise UserError(
            "config.protocol = 'refit' needs a validation split to pick lengths on and a test split to score."
        )


def refit(config: ConfigDict, results: dict[str, dict], manifest: Manifest) -> ConfigDict:
    """The config with each training phase as long, in epochs, as its best checkpoint by validation.

    A control whose length is that of other phases stays so: it gets as many images as they now have. A
    plateau's drops of the learning rate come at the same epochs as they did.

    Args:
      results: DONE.json by phase of the run that validation has picked from.
      manifest: of that run.
    """
    config = config.copy_and_resolve_references()
    train, val = (len(manifest.splits[split].labels) for split in ("train", "val"))
    longer = (train + val) / train
    names = configs.phases(config)
    controls = {config[name].compare[1] for name in names if "compare" in config[name]}
    for name in phases.trained(config):
        section = config[name]
        follows = any(unit not in lengths.UNITS for _, unit in lengths.terms(section.length, name))
        if not (name in controls and follows):
            best = results[name]["validation"]["best"]["step"]
            section.length = f"{max(1, round(best * longer))} steps"
        section.validation.early_stopping = 0
        if section.schedule.name == "plateau":
            section.schedule.name = "step"
            dropped = results[name]["plateau_drops"]
            section.schedule.drops = tuple(f"{round(step * longer)} steps" for step in dropped)
    return config
