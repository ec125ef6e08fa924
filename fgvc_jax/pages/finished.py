"""What a finished run has left in its folder, read for its report and for comparisons."""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fgvc_jax import config as configs
from fgvc_jax import phases
from fgvc_jax.data import load, sources
from fgvc_jax.data.manifest import Split
from fgvc_jax.errors import UserError
from fgvc_jax.layers import remat
from fgvc_jax.model import Specification, load_specification, read_done
from fgvc_jax.trained import REFIT, find

STARTED = "started.json"  # the command and the licences of pretrained weights


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run.

    Attributes:
      folder: its workdir.
      config: of the run.
      data: the content of manifest.json.
      parts: sub-folder ('', 'seed_0', 'seed_0/refit', ...) -> phase -> the content of its DONE.json.
      started: {'command', 'weights': {source: licence}}; {} of a run that did not note them.
    """

    folder: Path
    config: ConfigDict
    data: dict[str, Any]
    parts: dict[str, dict[str, dict]]
    started: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        return self.data["classes"]

    def split(self, name: str, part: str = "") -> Split:
        """Files and labels; the train split of a refit has the validation images behind its own."""
        names = ("train", "val") if name == "train" and part.endswith(REFIT) else (name,)
        rows = [item for one in names for item in self.data["splits"].get(one, {}).items()]
        return Split(tuple(f for f, _ in rows), np.array([label for _, label in rows], np.int32))

    def where(self, part: str, *rest: str) -> Path:
        return self.folder.joinpath(part, *rest)

    def evaluation(self, part: str) -> tuple[str, dict]:
        """(name, result) of the last evaluation phase that is done; ('', {}) without one."""
        for name, result in reversed(self.parts[part].items()):
            if "rows" in result or "retrieval" in result:
                return name, result
        return "", {}

    @functools.cached_property
    def reader(self) -> Callable[[str], np.ndarray]:
        """file -> uint8 [H, W, 3], as the run read its images; UserError for one that cannot be read."""
        try:
            settings = self.config.data.copy_and_resolve_references()
            settings.labels_patch = ""  # the labels are the manifest's, and the patch may be gone
            return load.read(settings).read
        except (UserError, OSError) as error:
            root = self.data["root"]
            if root is None:
                raise UserError(
                    f"The images of {self.data['name']} cannot be read: {error}"
                ) from None
            return lambda file: sources.read_image(os.path.join(root, file))


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model that a page is about, and what it answered on a split.

    Attributes:
      part, name: where it lies and its phase.
      which: the checkpoint that was scored, 'best' or 'last'.
      split: 'test', or 'val' where the run has no test labels.
      scores: float64 [N, C]; None of a model that only embeds.
      embedding: float32 [N, D] of a model that only embeds; None of a classifier.
    """

    part: str
    name: str
    which: str
    split: str
    scores: np.ndarray | None
    embedding: np.ndarray | None
    specification: Specification


def read(folder: str | os.PathLike) -> Finished:
    """Reads a run.

    Raises:
      UserError: where there is no finished run.
    """
    folder = Path(folder).expanduser().resolve()
    if not (folder / "config.json").exists() or not (folder / "manifest.json").exists():
        raise UserError(
            f"{folder} is not the workdir of a run: it has no config.json and manifest.json."
        )
    config = _config(_json(folder / "config.json"))
    seeds = [path for path in folder.glob("seed_*") if re.fullmatch(r"seed_\d+", path.name)]
    seeds.sort(key=lambda path: int(path.name.removeprefix("seed_")))
    parts = {}
    for part in [p.name for p in seeds] or [""]:
        for inner in (part, os.path.join(part, REFIT)):
            done = {name: read_done(folder / inner / name) for name in configs.phases(config)}
            if found := {name: result for name, result in done.items() if result}:
                parts[inner] = found
    run = Finished(folder, config, _json(folder / "manifest.json"), parts, {})
    if not any(run.evaluation(part)[0] for part in parts):
        raise UserError(
            f"{folder} has no finished evaluation of a classifier or of embeddings, which a report is about. "
            "Where its phases have one, start the run's command again: it goes on where it was."
        )
    started = folder / STARTED
    return dataclasses.replace(run, started=_json(started) if started.exists() else {})


def _config(saved: dict) -> ConfigDict:
    """The config; keys that are newer than the run are at their defaults."""
    config = ConfigDict(saved)
    if "remat" in config.model:
        config.model = config.model.to_dict() | {"remat": remat.kind_of(config.model.remat)}
    with config.unlocked():
        usual = [("", phases.complete_base(config))]
        usual += [
            (name, phases.complete_defaults(config[name])) for name in phases.sections(config)
        ]
        for name, defaults in usual:
            target = config[name] if name else config
            whole = defaults.copy_and_resolve_references().unlock()
            whole.update(target)
            target.update(whole)
    return phases.complete(config)


def subject(run: Finished) -> Subject:
    """The pipeline's model where the run compares one with a control, else the best on validation.

    Of several seeds the first; of a run that was refitted on train + val the refitted one.
    """
    scored = [part for part in run.parts if run.evaluation(part)[0]]
    part = next((p for p in scored if p.endswith(REFIT)), scored[0])
    evaluation, result = run.evaluation(part)
    rows = result.get("rows") or result["retrieval"]
    pipeline = run.config[evaluation].compare[0]
    folder = run.where(part, evaluation)
    kept = [row["name"] for row in rows if (folder / row["name"]).is_dir()]
    if not kept:
        raise UserError(f"{folder} holds no scores, though the phase is finished.")
    if pipeline in kept:
        name = pipeline
    else:
        name = find(run.where(part.removesuffix(REFIT))).folder.name
        name = name if name in kept else kept[-1]
    split = "test" if (folder / name / "test").is_dir() else "val"
    scores, embedding = (
        np.load(path) if (path := folder / name / split / file).exists() else None
        for file in ("scores.npy", "embedding.npy")
    )
    specification = load_specification(run.where(part, name, "model.json"))
    which = "last" if part.endswith(REFIT) else "best"
    scores = None if scores is None else scores.astype(np.float64)
    return Subject(part, name, which, split, scores, embedding, specification)


def curve(run: Finished, part: str, phase: str) -> dict[str, list[tuple[int, float]]]:
    """{'train/loss': [(step, value), ...], 'val/top1': ...} of a phase; {} where it wrote none."""
    path = run.where(part, phase, "metrics.jsonl")
    found: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
            step, kind = values["step"], values["kind"]
        except (ValueError, KeyError, TypeError):
            continue  # torn by a kill
        for name, value in values.items():
            if name not in ("step", "kind", "time") and value is not None:
                found.setdefault(f"{kind}/{name}", []).append((step, value))
    return found


def probabilities(scores_NC: np.ndarray) -> np.ndarray:
    """Softmax in float64; classes at -inf have 0."""
    shifted = np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _json(path: Path) -> dict:
    return json.loads(path.read_text("utf-8", "surrogateescape"))
