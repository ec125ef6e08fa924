"""The evaluation phase: every classifier on validation and test, beside two rows that cost nothing."""

import jax
import numpy as np

from fgvc_jax import methods
from fgvc_jax.metrics import classification as metrics
from fgvc_jax.metrics.knn import knn_accuracy
from fgvc_jax.mining import rerank as reranking
from fgvc_jax.phases.context import Context, write_json
from fgvc_jax.report import per_class
from fgvc_jax.train import mesh as meshes
from fgvc_jax.train import tree
from fgvc_jax.train.predict import predict_all


def run(context: Context, name: str) -> dict:
    """Writes by classifier and split scores.npy, per_class.csv, confusion_matrix.csv, confusions.json.

    Validation chooses the checkpoint; the test split is only read. The last checkpoint is scored too.

    Returns:
      {'rows': [{'name', 'val': {...}, 'test': {...}, 'last_test': ...}, ...], and with a pipeline and its
      control 'comparison': {'pipeline', 'control', 'split', 'count', 'b', 'c', 'p'}}.
    """
    section, config = context.config[name], context.config
    splits = [s for s in ("val", "test") if s in context.manifest.splits]
    classes = len(context.manifest.classes)
    models = list(section.models) or [
        phase
        for phase in context.results
        if config[phase].kind == "train" and methods.get(config[phase].method).task == "classify"
    ]
    rows = _free_rows(context, section, splits, models)
    scores: dict[str, dict[str, np.ndarray]] = {}
    for phase in models:
        row = {"name": phase}
        chosen = context.results[phase]["validation"]
        for which in ("best", "last"):
            if which == "last" and chosen["last"]["step"] == chosen["best"]["step"]:
                row |= {f"last_{split}": row[split] for split in splits}
                continue
            _, module, weights = context.trained_model(phase, which)
            for split in splits:
                found = _predict(context, module, weights, split, section.batch)["scores"]
                labels = context.manifest.splits[split].labels
                measured = metrics.classification(found, labels, classes)
                row[split if which == "best" else f"last_{split}"] = measured
                if which == "best":
                    scores.setdefault(phase, {})[split] = found
        rows.append(row)
    pipeline, control = section.compare
    if section.rerank in context.results and pipeline in scores:
        name_of_row = f"{pipeline}, re-ranked"
        scores[name_of_row] = _rerank(context, section, scores[pipeline])
        rows.append({"name": name_of_row})
        for split, found in scores[name_of_row].items():
            labels = context.manifest.splits[split].labels
            rows[-1][split] = metrics.classification(found, labels, classes)
    result = {"rows": rows}
    if pipeline in scores and control in scores:
        split = "test" if "test" in splits else "val"
        labels = context.manifest.splits[split].labels
        right = [scores[phase][split].argmax(axis=1) == labels for phase in (pipeline, control)]
        result["comparison"] = {"pipeline": pipeline, "control": control, "split": split}
        result["comparison"] |= {"count": len(labels)} | metrics.mcnemar(*right)
    if context.main:
        for phase, by_split in scores.items():
            for split, found in by_split.items():
                folder = context.directory(name) / phase.replace(", ", "_") / split
                _write(context, folder, found, context.manifest.splits[split].labels)
    return result


def _rerank(context: Context, section, scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By split, the classifier's scores weighed by the comparator's; gallery and neighbours are its own."""
    _, module, weights = context.trained_model(section.rerank, "best")

    def embed(split: str) -> np.ndarray:
        return _predict(context, module, weights, split, section.batch)["embedding"]

    static, _, _ = tree.split(module)
    same = jax.jit(lambda weights, q, n: tree.merge(static, **weights).same(q, n))
    gallery, gallery_labels = embed("train"), context.manifest.splits["train"].labels
    result = {}
    for split, classifier in scores.items():
        queries = embed(split)
        classes, nearest = reranking.candidates(
            classifier, queries, gallery, gallery_labels, section.rerank_classes
        )
        columns = [  # one candidate of every query at a time; -1 picks a row that is then masked
            np.where(column >= 0, np.asarray(same(weights, queries, gallery[column])), -np.inf)
            for column in nearest.T
        ]
        result[split] = reranking.rerank(classifier, classes, np.stack(columns, axis=1))
    return result


def _predict(context: Context, module, weights, split: str, batch: int) -> dict[str, np.ndarray]:
    index = np.arange(len(context.manifest.splits[split].labels))[:, None]
    predict = context.predictor(module)
    return predict_all(
        predict, weights, context.feed([split]), index, batch, check=context.stop.check
    )


def _free_rows(context: Context, section, splits, models) -> list[dict]:
    """The commonest training class, and a kNN vote on the features that training started from."""
    labels = {split: s.labels for split, s in context.manifest.splits.items()}
    majority = {"name": "majority class"}
    neighbours = {"name": f"kNN (k={section.neighbours}), starting features"}
    module = context.starting_model(context.describe(context.config[models[0]]))
    _, params, stats = tree.split(module)
    weights = {"params": params, "stats": stats}
    weights = jax.device_put(weights, meshes.shardings(weights, context.mesh))
    embedded = {
        split: _predict(context, module, weights, split, section.batch)["embedding"]
        for split in ("train", *splits)
    }
    for split in splits:
        majority[split] = {"top1": metrics.majority(labels["train"], labels[split])}
        vote = knn_accuracy(
            embedded[split],
            labels[split],
            embedded["train"],
            labels["train"],
            ks=(section.neighbours,),
        )
        neighbours[split] = {"top1": vote[f"knn{section.neighbours}"]}
    return [majority, neighbours]


def _write(context: Context, folder, scores, labels) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    classes = context.manifest.classes
    np.save(folder / "scores.npy", scores.astype(np.float32))
    per_class.write_csv(folder / "per_class.csv", per_class.rows(scores, labels, classes))
    per_class.write_confusion_csv(folder / "confusion_matrix.csv", scores, labels, classes)
    found = per_class.confusions(scores, labels, classes)
    write_json(folder / "confusions.json", {"confusions": found})
