"""Which trained model the folder of a run stands for, and what it was trained on."""

import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fgvc_jax import methods
from fgvc_jax.errors import UserError, choose
from fgvc_jax.model import Specification, load_specification, read_done
from fgvc_jax.model_folder import is_model_folder
from fgvc_jax.train.checkpoint import METRIC

KINDS = ("classify", "retrieve")  # evaluators of models that take single images
REFIT = "refit"  # in a run's folder, its second training, on train + val
PARENTS = 3  # at most: from a phase over its refit and its seed to the run


class Found(NamedTuple):
    """A trained classifier on disk."""

    folder: Path  # of the training phase
    which: str  # the checkpoint, 'best' or 'last'
    specification: Specification


def find(run: str | os.PathLike, phase: str = "", which: str = "best") -> Found:
    """The trained classifier of a run; of a run that has none, its embedding model (evaluator 'retrieve').

    Without a phase it is the one that is best on validation, of equals the one finished last. Where
    the run was refitted on train + val, it is the refitted model of that phase, at its last step: the refit
    has no validation images to choose by, and its lengths were chosen so that the last step is the model.

    Args:
      run: the run's workdir, one of its seeds (seed_0), its refit, or the folder of a training phase.
      phase: a training phase by name, such as 'retrain', or 'refit/retrain'; '' = as above.
      which: the checkpoint, 'best' by validation or 'last'.

    Raises:
      UserError: where there is no trained classifier.
    """
    choose(which, ("best", "last"), "which")
    run = Path(run).expanduser().resolve()
    if phase:
        return _classifier(run / phase, which)
    if (run / "model.json").exists():
        return _classifier(run, which)
    if is_model_folder(run):
        raise UserError(
            f"{run} is a model folder, which fgvc predict, fgvc explain and fgvc_jax.load take; this wants "
            f"the run that made it, such as {run.parent}."
        )
    inner = is_refit(run)
    best = best_on_validation(run.parent if inner else run, which)
    if best is None:
        if inner and any(run.glob("*/DONE.json")):
            raise UserError(
                f"{run} is the refit of a run whose own phases are not beside it, and it has no validation "
                "metrics to choose a phase by. Name the folder of a phase, such as "
                f"{sorted(run.glob('*/model.json'))[-1].parent}."
            )
        parts = sorted(p.parent.parent for p in run.glob("*/*/DONE.json"))
        inside = f" There are some in {parts[0]}." if parts else ""
        raise UserError(f"no finished classifier in {run}: is it the --workdir of a run?{inside}")
    refit = best.folder.parent / REFIT
    again = refit / best.folder.name
    if read_done(again):
        return _classifier(again, "last")
    if inner:
        raise UserError(
            f"{again} is not finished. Start the run's command again to finish the refit, or load "
            f"{run.parent}, the run before it."
        )
    if refit.is_dir():
        logging.getLogger(__name__).warning(
            "%s is not finished; loaded is %s, which was trained without the validation images.",
            again,
            best.folder,
        )
    return best


def is_refit(run: Path) -> bool:
    """Whether a folder is the refit of a run. A workdir of this name alone holds a config."""
    return run.name == REFIT and not (run / "config.json").exists()


def finished(run: Path) -> list[Path]:
    """DONE.json of each finished phase in a folder, in the order in which they were finished."""

    def when(path: Path) -> tuple[str, float]:  # a copy may have other times than the run
        return read_done(path.parent).get("finished", ""), path.stat().st_mtime

    return sorted(run.glob("*/DONE.json"), key=when)


def gives_classes(specification: Specification) -> bool:
    """Whether the model is a classifier."""
    return methods.get(specification.method).evaluator == "classify"


def run_of(phase: Path) -> Path:
    """The workdir that a phase lies in: the folder above it with manifest.json and config.json.

    Raises:
      UserError: there is none.
    """
    for folder in list(phase.parents)[:PARENTS]:
        if (folder / "manifest.json").exists():
            return folder
    raise UserError(f"no manifest.json above {phase}, which would name its training images")


def trained_on(phase: Path) -> tuple[dict, dict[str, int]]:
    """(manifest.json of the run, its training images with their labels) of a phase; errors as `run_of`."""
    manifest = json.loads((run_of(phase) / "manifest.json").read_text(errors="surrogateescape"))
    splits = ("train", "val") if phase.parent.name == REFIT else ("train",)
    every = [manifest["splits"].get(split, {}) for split in splits]
    return manifest, {file: label for images in every for file, label in images.items()}


def best_on_validation(run: Path, which: str) -> Found | None:
    """The best finished classifier in a folder, of equals the latest; else the best embedding model.

    None where the folder has neither.
    """
    best, highest = None, (False, -np.inf)
    for path in finished(run):
        if not (path.parent / "model.json").exists():
            continue
        specification = load_specification(path.parent / "model.json")
        value = read_done(path.parent)["validation"]["best"].get(METRIC, 0.0)
        rank = (gives_classes(specification), value)
        if methods.get(specification.method).evaluator in KINDS and rank >= highest:
            best, highest = Found(path.parent, which, specification), rank
    return best


def _classifier(folder: Path, which: str) -> Found:
    specification = load_specification(folder / "model.json")
    if methods.get(specification.method).evaluator not in KINDS:
        raise UserError(
            f"{folder} holds a {specification.method!r} model, which does not give classes."
        )
    return Found(folder, which, specification)
