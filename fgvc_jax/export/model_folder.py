"""The model folder of a finished run, RUN/model: the best model and all that its use needs.

calibration.json holds what validation tells of the model:

  images        how many
  temperature   the scores are divided by it before the softmax
  confidence    of each answer its probability, and `right`, whether it is true: any threshold can be chosen
  reranked      {confidence, right} of the answers re-ranked by the comparator, where there is one
  distance      {neighbour, quantile, value}: the cosine distance to the k-th nearest training image
                which that share of the validation images stays below (Sun et al. 2022)
  before_refit  true where it was measured before the model was trained again on train + val
"""

import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from fgvc_jax import mesh as meshes
from fgvc_jax import methods, model_folder
from fgvc_jax.context.data import Data
from fgvc_jax.context.models import Models
from fgvc_jax.context.run import Run
from fgvc_jax.export import card
from fgvc_jax.metrics.calibration import softmax, temperature
from fgvc_jax.mining import rerank as reranking
from fgvc_jax.mining.rerank import CANDIDATES
from fgvc_jax.model import comparing, read_done, trained
from fgvc_jax.model_folder import COMPARATOR, FAR, NAME, ModelFolder, Support
from fgvc_jax.ops.knn import nearest
from fgvc_jax.train import tree
from fgvc_jax.train.predict import predict_all
from fgvc_jax.trained import best_on_validation, is_refit

log = logging.getLogger(__name__)

MOST = 50_000  # training images whose embeddings are kept
KNOWN = 0.99  # share of the validation images that are called like the training images
BATCH = 64


def write(run: Run, data: Data, models: Models) -> None:
    """Writes RUN/model, unless it is there already; all processes must call it.

    A run without a model of single images gets none.
    """
    folder, phase = run.workdir / NAME, _phase(run.workdir)
    if not phase:
        return
    done = read_done(run.workdir / phase)
    if model_folder.is_of(folder, phase, done["hash"]):
        return
    which = "last" if is_refit(run.workdir) else "best"
    content, outputs = _collect(run, data, models, phase, which)
    other = _comparator(run)
    comparator = None
    if other and "scores" in outputs["train"]:
        comparator, compared = _collect(run, data, models, other, "best")
        if "val" in outputs:
            scores = outputs["val"]["scores"] / content.calibration["temperature"]
            again = _rerank(models, other, scores, compared, data)
            content.calibration["reranked"] = _answers(again, data.labels("val"))
    earlier = run.workdir.parent / NAME / "calibration.json"
    if is_refit(run.workdir) and earlier.exists():
        content.calibration.update(json.loads(earlier.read_text()) | {"before_refit": True})
    if run.main:
        try:
            _save(folder, content, comparator, card.text(content, run.results, data.manifest))
        except OSError as error:  # the run is finished, whatever comes of it
            log.warning(
                "warning: %s could not be written (%s); the same command tries again.",
                folder,
                error.strerror,
            )
            return
        log.info("  model: %s", folder)


def _save(folder: Path, content: ModelFolder, comparator: ModelFolder | None, text: str) -> None:
    """Under another name until it is whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model_folder.save(partial, content, text)
    if comparator is not None:
        (partial / COMPARATOR).mkdir()
        told = "The comparator of the model in the folder above: are two images of one class?\n"
        model_folder.save(partial / COMPARATOR, comparator, told)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def _collect(
    run: Run, data: Data, models: Models, phase: str, which: str
) -> tuple[ModelFolder, dict[str, dict[str, np.ndarray]]]:
    """The content of a folder, and the model's outputs on train and val."""
    specification, module, weights = trained(run.workdir / phase, which, models.mesh)
    predict = models.predictor(tree.split(module)[0])
    batch = math.ceil(BATCH / models.mesh.size) * models.mesh.size
    outputs = {
        split: predict_all(predict, weights, data.whole(split, batch), check=run.stop.check)
        for split in ("train", "val")
        if split in data.sizes
    }
    labels, names = data.labels("train"), np.array(data.manifest.splits["train"].files)
    kept, support = _evenly(labels, MOST, run.config.seed), None
    if "embedding" in outputs["train"]:  # a user's own method may have none
        support = Support(outputs["train"]["embedding"][kept], labels[kept], names[kept])
    done = read_done(run.workdir / phase)
    about = {
        "data": data.manifest.name,
        "phase": phase,
        "checkpoint": which,
        "hash": done["hash"],
        "seed": run.config.seed,
        "validation": done.get("validation", {}),
        "versions": done["versions"],
    }
    arrays = {k: meshes.to_host(x) for part in weights.values() for k, x in part.items()}
    calibration = (
        _calibrate(outputs["val"], data.labels("val"), support) if "val" in outputs else {}
    )
    return ModelFolder(specification, arrays, about, calibration, support), outputs


def _calibrate(outputs: dict[str, np.ndarray], labels: np.ndarray, support: Support | None) -> dict:
    found: dict[str, Any] = {"images": len(labels)}
    if "scores" in outputs and outputs["scores"].ndim == 2:
        found["temperature"] = temperature(outputs["scores"], labels)
        found |= _answers(outputs["scores"] / found["temperature"], labels)
    if support is None:
        return found
    k = min(FAR, len(support.label))
    _, cosine = nearest(outputs["embedding"], support.embedding, k)
    value = float(np.quantile(1 - cosine[:, -1], KNOWN))
    return found | {"distance": {"neighbour": k, "quantile": KNOWN, "value": value}}


def _answers(scores: np.ndarray, labels: np.ndarray) -> dict[str, list]:
    probabilities = softmax(scores)
    right = probabilities.argmax(axis=1) == labels
    confidence = probabilities.max(axis=1)
    return {"confidence": confidence.tolist(), "right": right.astype(int).tolist()}


def _rerank(
    models: Models, phase: str, scores: np.ndarray, compared: dict, data: Data
) -> np.ndarray:
    """The validation scores weighed by the comparator's; see `fgvc_jax.mining.rerank`."""
    _, module, weights = models.trained(phase, "best")
    same = comparing(tree.split(module)[0])
    queries, gallery = compared["val"]["embedding"], compared["train"]["embedding"]
    return reranking.reranked(
        scores,
        queries,
        gallery,
        data.labels("train"),
        CANDIDATES,
        lambda q, n: np.asarray(same(weights, q, n)),
    )


def _evenly(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Rows of at most `most` examples, as many of each class as there is room for, in order."""
    if len(labels) <= most:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    start = np.searchsorted(labels[order], labels[order])
    place = np.arange(len(labels)) - start  # within its class
    return np.sort(order[np.argsort(place, kind="stable")[:most]])


def _phase(workdir: Path) -> str | None:
    """The training phase whose model is the run's; a refit's is that of the run before."""
    found = best_on_validation(workdir.parent if is_refit(workdir) else workdir, "best")
    return found and found.folder.name


def _comparator(run: Run) -> str | None:
    """The last finished training phase whose method compares two images."""
    names = [name for name in run.results if "method" in run.config.get(name, {})]
    found = [name for name in names if hasattr(methods.get(run.config[name].method), "same")]
    return found[-1] if found else None
