"""The evaluation phase: every classifier on validation and test, beside two rows that cost nothing."""

import jax
import numpy as np

from fgvc_jax import methods
from fgvc_jax.metrics import classification as metrics
from fgvc_jax.metrics.knn import knn_accuracy
from fgvc_jax.phases.context import Context, write_json
from fgvc_jax.train import mesh as meshes
from fgvc_jax.train import tree
from fgvc_jax.train.predict import predict_all


def run(context: Context, name: str) -> dict:
    """Writes by classifier and split scores.npy, per_class.csv, confusion_matrix.csv, confusions.json.

    Validation chooses the checkpoint; the test split is only read. The last checkpoint is scored too.

    Returns:
      {'rows': [{'name', 'val': {...}, 'test': {...}, 'last_test': ...}, ...]}
    """
    section, config = context.config[name], context.config
    meshes.check_batch(section.batch, context.mesh, f"config.{name}.batch")
    splits = [s for s in ("val", "test") if s in context.manifest.splits]
    models = list(section.models) or [
        phase
        for phase in context.results
        if config[phase].kind == "train" and methods.get(config[phase].method).task == "classify"
    ]
    rows = _free_rows(context, section, splits, models)
    for phase in models:
        row = {"name": phase}
        for which in ("best", "last"):
            _, module, weights = context.trained_model(phase, which)
            for split in splits:
                scores = _predict(context, module, weights, split, section.batch)["scores"]
                labels = context.manifest.splits[split].labels
                found = metrics.classification(scores, labels, len(context.manifest.classes))
                row[split if which == "best" else f"last_{split}"] = found
                if which == "best" and context.main:
                    _write(context, context.directory(name) / phase / split, scores, labels)
        rows.append(row)
    return {"rows": rows}


def _predict(context: Context, module, weights, split: str, batch: int) -> dict[str, np.ndarray]:
    index = np.arange(len(context.manifest.splits[split].labels))[:, None]
    predict = context.predictor(module)
    return predict_all(predict, weights, context.feed([split]), index, batch, context.stop.check)


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
    metrics.write_per_class_csv(
        folder / "per_class.csv", metrics.per_class(scores, labels, classes)
    )
    metrics.write_confusion_csv(folder / "confusion_matrix.csv", scores, labels, classes)
    write_json(
        folder / "confusions.json", {"confusions": metrics.confusions(scores, labels, classes)}
    )


def table(rows: list[dict], splits: list[str]) -> list[str]:
    """The rows as lines of text: top-1 in percent with its 95 % interval, and what else was measured."""
    head = f"  {'':<32}{'val top-1':>10}"
    if "test" in splits:
        head += f"{'test top-1':>12}{'95 % interval':>17}{'top-5':>8}"
        head += f"{'by class':>10}{'F1':>7}{'last epoch':>12}"
    lines = [head]
    for row in rows:
        line = f"  {row['name']:<32}"
        line += f"{100 * row['val']['top1']:>10.2f}" if "val" in row else f"{'-':>10}"
        test = row.get("test")
        if test:
            line += f"{100 * test['top1']:>12.2f}"
        if test and "macro_f1" in test:
            interval = f"{100 * test['top1_low']:.2f} - {100 * test['top1_high']:.2f}"
            line += f"{interval:>17}{100 * test['top5']:>8.2f}"
            line += f"{100 * test['mean_class_accuracy']:>10.2f}{100 * test['macro_f1']:>7.2f}"
            line += f"{100 * row['last_test']['top1']:>12.2f}"
        lines.append(line)
    return lines
