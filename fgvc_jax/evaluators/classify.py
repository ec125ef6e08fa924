"""Classifiers: accuracy on validation and test, beside rows that cost nothing, and a paired test."""

import dataclasses

import jax
import numpy as np

from fgvc_jax import mesh as meshes
from fgvc_jax.data import manifest as manifests
from fgvc_jax.data.manifest import Manifest
from fgvc_jax.evaluators._scorer import Scorer
from fgvc_jax.files import write_json
from fgvc_jax.metrics import classification as metrics
from fgvc_jax.metrics.knn import knn_accuracy
from fgvc_jax.mining import rerank as reranking
from fgvc_jax.model import comparing
from fgvc_jax.report import per_class
from fgvc_jax.train import tree
from fgvc_jax.train.checkpoint import METRIC


def check(manifest: Manifest) -> None:
    """Raises UserError unless there are two classes and every class has a training image."""
    manifests.check_classification(manifest)


def validate(outputs: dict[str, np.ndarray], labels: np.ndarray, classes: int) -> dict[str, float]:
    """Top-1, by which the best checkpoint is chosen, and the mean negative log-likelihood in nats."""
    found = metrics.classification(outputs["scores"], labels, classes)
    return {"top1": found["top1"], "nll": found["nll"], METRIC: found["top1"]}


def final(scorer: Scorer, names: list[str]) -> dict:
    """Writes by classifier and split scores.npy, per_class.csv, confusion_matrix.csv, confusions.json.

    Validation chose the checkpoints; the test split is only read. The last checkpoint is scored too.

    Returns:
      {'rows': [{'name', 'val': {...}, 'test': {...}, 'last_test': ...}, ...], and with a pipeline and its
      control 'comparison': see `fgvc_jax.report.tables.verdict`}.
    """
    section, data, splits = scorer.section, scorer.data, scorer.splits
    rows = _free_rows(scorer, names[0])
    scores: dict[str, dict[str, np.ndarray]] = {}
    for phase in names:
        row = {"name": phase}
        for which, read in scorer.checkpoints(phase).items():
            if which == "last" and read == "best":
                row |= {f"last_{split}": row[split] for split in splits}
                continue
            _, module, weights = scorer.models.trained(phase, read)
            for split in splits:
                found = scorer.outputs(module, weights, split)["scores"]
                row[split if which == "best" else f"last_{split}"] = _measure(scorer, found, split)
                if which == "best":
                    scores.setdefault(phase, {})[split] = found
        rows.append(row)
    pipeline, control = section.compare
    if section.rerank in scorer.run.results and pipeline in scores:
        name = f"{pipeline}, re-ranked"
        scores[name] = _rerank(scorer, scores[pipeline])
        measured = {split: _measure(scorer, found, split) for split, found in scores[name].items()}
        rows.append({"name": name} | measured)
    result = {"rows": rows}
    if pipeline in scores and control in scores:
        split = "test" if "test" in splits else "val"
        right = [scores[p][split].argmax(axis=1) == data.labels(split) for p in (pipeline, control)]
        result["comparison"] = {
            "pipeline": pipeline,
            "control": control,
            "split": split,
            "count": data.sizes[split],
            **metrics.mcnemar(*right),
            **scorer.budget(pipeline, control),
        }
    if scorer.run.main:
        for phase, by_split in scores.items():
            for split, found in by_split.items():
                _write(scorer, phase.replace(", ", "_"), split, found)
    return result


def _measure(scorer: Scorer, scores: np.ndarray, split: str) -> dict:
    classes = len(scorer.data.manifest.classes)
    return metrics.classification(scores, scorer.data.labels(split), classes)


def _rerank(scorer: Scorer, scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By split, the classifier's scores weighed by the comparator's; gallery and neighbours are its own."""
    section, data = scorer.section, scorer.data
    _, module, weights = scorer.models.trained(section.rerank, "best")
    same = comparing(tree.split(module)[0])
    gallery = scorer.outputs(module, weights, "train")["embedding"]
    result = {}
    for split, classifier in scores.items():
        queries = scorer.outputs(module, weights, split)["embedding"]
        result[split] = reranking.reranked(
            classifier,
            queries,
            gallery,
            data.labels("train"),
            section.rerank_classes,
            lambda q, n: np.asarray(same(weights, q, n)),
        )
    return result


def _free_rows(scorer: Scorer, phase: str) -> list[dict]:
    """The commonest training class, and a kNN vote on the features that training started from."""
    models, data, k = scorer.models, scorer.data, scorer.section.neighbours
    labels = {split: data.labels(split) for split in data.sizes}
    specification = models.specify(models.config[phase])
    begun = tree.weights(models.starting_model(specification))
    # The backbone's own features, whatever the method makes of them.
    plain = dataclasses.replace(specification, method="baseline", method_arguments={})
    module = plain.build()
    weights = {
        kind: arrays | {p: x for p, x in begun[kind].items() if p.startswith("backbone/")}
        for kind, arrays in tree.weights(module).items()
    }
    weights = jax.device_put(weights, meshes.shardings(weights, models.mesh))
    embedded = {
        split: scorer.outputs(module, weights, split)["embedding"]
        for split in ("train", *scorer.splits)
    }
    majority = {"name": "majority class"}
    neighbours = {"name": f"kNN (k={k}), starting features"}
    for split in scorer.splits:
        majority[split] = {"top1": metrics.majority(labels["train"], labels[split])}
        vote = knn_accuracy(
            embedded[split], labels[split], embedded["train"], labels["train"], ks=(k,)
        )
        neighbours[split] = {"top1": vote[f"knn{k}"]}
    return [majority, neighbours]


def _write(scorer: Scorer, name: str, split: str, scores: np.ndarray) -> None:
    folder = scorer.folder / name / split
    folder.mkdir(parents=True, exist_ok=True)
    labels, classes = scorer.data.labels(split), scorer.data.manifest.classes
    np.save(folder / "scores.npy", scores.astype(np.float32))
    per_class.write_csv(folder / "per_class.csv", per_class.rows(scores, labels, classes))
    per_class.write_confusion_csv(folder / "confusion_matrix.csv", scores, labels, classes)
    commonest = per_class.confusions(scores, labels, classes)
    write_json(folder / "confusions.json", {"confusions": commonest})
