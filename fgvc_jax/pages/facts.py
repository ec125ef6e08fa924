"""What a report says of the run as a whole: verdict, results, curves, cost, where it came from."""

import importlib.metadata
import json
from typing import Any

import numpy as np

from fgvc_jax.errors import UserError
from fgvc_jax.pages import charts, finished
from fgvc_jax.pages.finished import Finished, Subject
from fgvc_jax.report import tables
from fgvc_jax.trained import REFIT

# name -> title, of a row's metrics: shares between 0 and 1, but for `nll` in nats and cosines.
CLASSIFY = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class_accuracy": "mean class acc.",
    "macro_f1": "F1",
    "nll": "NLL",
}
RETRIEVE = {
    "recall@1": "Recall@1",
    "recall@8": "Recall@8",
    "r_precision": "R-precision",
    "map@r": "MAP@R",
    "nmi": "NMI",
    "knn1": "1-NN by train",
    "probe": "linear probe",
    "cosine_same": "cosine, same",
    "cosine_other": "cosine, other",
}
RAW = ("nll", "cosine_same", "cosine_other")


def row_of(run: Finished, subject: Subject) -> dict[str, Any]:
    """The subject's metrics on its split."""
    _, result = run.evaluation(subject.part)
    rows = result.get("rows") or result["retrieval"]
    return next(row[subject.split] for row in rows if row["name"] == subject.name)


def over_seeds(run: Finished, subject: Subject) -> list[dict[str, Any]]:
    """The subject's metrics on its split, of each seed."""
    found = []
    for part in _alike(run, subject.part):
        _, result = run.evaluation(part)
        rows = result.get("rows") or result["retrieval"]
        found += [row[subject.split] for row in rows if row["name"] == subject.name]
    return found


def verdict(run: Finished, subject: Subject) -> tuple[str, list[str], str]:
    """(one sentence, further sentences, 'good', 'bad' or '')."""
    results = [run.evaluation(part)[1] for part in _alike(run, subject.part)]
    found = [result["comparison"] for result in results if "comparison" in result]
    if len(found) > 1:
        better, worse = sum(map(tables.is_better, found)), sum(map(tables.is_worse, found))
        text = (
            f"The pipeline ({found[0]['pipeline']}) is better than the {found[0]['control']} in {better} of "
            f"{len(found)} seeds and worse in {worse} (McNemar, p < 0.05 each)."
        )
        tone = "good" if better > len(found) / 2 else "bad" if worse > len(found) / 2 else ""
        return text, [], tone
    if found:
        first, *rest = (line.strip() for line in tables.verdict(found[0]))
        tone = "good" if tables.is_better(found[0]) else "bad" if tables.is_worse(found[0]) else ""
        return first, rest, tone
    row, images = row_of(run, subject), f"{subject.split} images"
    if subject.scores is None:
        share = f"{100 * row['recall@1']:.1f} %"
        first = f"For {share} of {row['count']:,} {images} the nearest other image is of the same class."
        return first, [], ""
    first = (
        f"The model ({subject.name}) is right on {100 * row['top1']:.1f} % of {row['count']:,} {images} "
        f"(95 % interval {100 * row['top1_low']:.1f} to {100 * row['top1_high']:.1f})."
    )
    return first, ["The run has no control, so it says nothing about what the method adds."], ""


def results(run: Finished, subject: Subject) -> dict[str, Any]:
    """The rows of the evaluation: {'split', 'columns': titles, 'rows': [{'name', 'cells': text}], 'seeds'}.

    Of several seeds a cell is the mean and the standard deviation over them.
    """
    parts = _alike(run, subject.part)
    kind, columns, main = ("rows", CLASSIFY, "top1")
    if subject.scores is None:
        kind, columns, main = ("retrieval", RETRIEVE, "recall@1")
    by_part = [{row["name"]: row for row in run.evaluation(part)[1][kind]} for part in parts]
    names = list(by_part[0])
    shown = {
        m: title
        for m, title in columns.items()
        if any(m in by_part[0][name].get(subject.split, {}) for name in names)
    }
    table = []
    for name in names:

        def values(split, metric, name=name):
            found = [rows.get(name, {}).get(split, {}).get(metric) for rows in by_part]
            return [x for x in found if x is not None]

        test = by_part[0][name].get(subject.split, {})
        interval = ""
        if "top1_low" in test and len(parts) == 1:
            interval = f"{100 * test['top1_low']:.2f} – {100 * test['top1_high']:.2f}"
        table.append(
            {
                "name": name,
                "val": _told(values("val", main), False) if subject.split == "test" else "",
                "interval": interval,
                "cells": [_told(values(subject.split, m), m in RAW) for m in shown],
                "last": _told(values(f"last_{subject.split}", main), False),
                "subject": name == subject.name,
            }
        )
    return {
        "split": subject.split,
        "columns": list(shown.values()),
        "rows": table,
        "seeds": len(parts),
        "main": columns[main],
        "val": subject.split == "test" and any(r["val"] for r in table),
        "intervals": any(r["interval"] for r in table),
    }


def forest(run: Finished, subject: Subject) -> str:
    """The rows' accuracies with their 95 % intervals as a chart; '' where there are none."""
    _, result = run.evaluation(subject.part)
    rows = [
        (row["name"], m["top1_low"], m["top1"], m["top1_high"])
        for row in result.get("rows", ())
        if "top1_low" in (m := row.get(subject.split, {}))
    ]
    title = f"Top-1 on {subject.split} with 95 % intervals (Wilson)"
    return charts.intervals(rows, title, "top-1 accuracy") if rows else ""


def _told(values: list[float], raw: bool) -> str:
    if not values:
        return "–"
    scale, digits = (1, 3) if raw else (100, 2)
    mean = f"{scale * np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {scale * np.std(values, ddof=1):.{digits}f}"


def _alike(run: Finished, part: str) -> list[str]:
    """The parts that are the same but for their seed."""
    refit = part.endswith(REFIT)
    return [p for p in run.parts if p.endswith(REFIT) == refit and run.evaluation(p)[0]]


def curves(run: Finished, subject: Subject) -> dict[str, list[str]]:
    """Charts of each training phase of the subject's part: the loss, and what validation measured."""
    found = {}
    for phase in run.parts[subject.part]:
        lines = finished.curve(run, subject.part, phase)
        drawn = []
        for title, names, show in (
            ("loss", {"train/loss": "train", "val/nll": "validation (NLL)"}, charts.number),
            (
                "validation",
                {
                    "val/top1": "top-1",
                    "val/auroc": "AUROC",
                    "val/recall@1": "Recall@1",
                    "val/map@r": "MAP@R",
                    "val/accuracy": "accuracy of pairs",
                },
                charts.percent,
            ),
        ):
            series = [
                charts.Line(label, *zip(*lines[name], strict=True))
                for name, label in names.items()
                if name in lines
            ]
            if series:
                y = series[0].name if len(series) == 1 else "share"
                y = "loss" if title == "loss" else y
                drawn.append(charts.lines(series, f"{phase}: {title}", "step", y, show=show))
        if drawn:
            found[phase] = drawn
    return found


def warnings(run: Finished) -> dict[str, Any]:
    """The data doctor's findings: {'items': [{'severity', 'text', 'advice', 'cases'}], 'note'}."""
    path = run.folder / "data.json"
    if not path.exists():
        return {
            "items": [],
            "note": "The run has no data.json: the data doctor did not look at its images.",
        }
    items = json.loads(path.read_text("utf-8", "surrogateescape"))["items"]
    told = [
        {
            "severity": item["severity"],
            "text": item["text"],
            "advice": item["advice"],
            "cases": [" and ".join(_case(case)) for case in item["cases"][:3]],
            "more": max(0, len(item["cases"]) - 3),
        }
        for item in items
        if item["severity"] != "note"
    ]
    note = "" if told else "The data doctor found nothing to warn of."
    return {"items": told, "note": note}


def _case(case: dict[str, Any]) -> list[str]:
    """Up to three files of a finding, each with the place that it has in the data."""
    named = zip(case["files"], case["places"], strict=True)
    return [f"{file} ({place})" for file, place in named][:3]


def cost(run: Finished) -> dict[str, Any]:
    """{'rows': [{'phase', 'seconds', 'images', 'passes', 'rate'}], 'seconds': of all}; seeds stand apart."""
    rows = []
    for part, phases in run.parts.items():
        for phase, result in phases.items():
            steps = result.get("seconds_by_kind", {}).get("steps", 0)
            images = result.get("images", 0)
            rows.append(
                {
                    "phase": f"{part}/{phase}" if part else phase,
                    "seconds": result["seconds"],
                    "images": images or result.get("images_forward", 0),
                    "passes": round(result["passes"]) if "passes" in result else None,
                    "rate": images / steps if steps else None,
                }
            )
    return {"rows": rows, "seconds": sum(row["seconds"] for row in rows)}


def origin(run: Finished) -> dict[str, Any]:
    """Command, config, versions and licences of packages, licences of pretrained weights."""
    _, result = run.evaluation(next(iter(run.parts)))
    versions = result.get("versions", {})
    model = run.config.model
    asked = [w for w in (model.pretrained, model.second_pretrained, run.config.init.file) if w]
    known = run.started.get("weights", {})
    return {
        "command": run.started.get("command", ""),
        "config": json.dumps(run.config.to_dict(), indent=1, sort_keys=True, default=list),
        "packages": [(name, version, licence(name)) for name, version in versions.items()],
        "weights": [(source, known.get(source, "unknown")) for source in asked],
        "start": run.config.init.run,
        "finished": result.get("finished", ""),
    }


def licence(package: str) -> str:
    """A package's licence as its own metadata state it; '' where they do not."""
    if package == "python":
        return "PSF-2.0"
    try:
        found = importlib.metadata.metadata(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
    stated = found.get("License-Expression") or found.get("License") or ""
    if stated and "\n" not in stated and len(stated) <= 80:
        return stated
    classifiers = found.get_all("Classifier", [])
    named = [c.split(" :: ")[-1] for c in classifiers if c.startswith("License ::")]
    return ", ".join(named) or stated.strip()[:80].partition("\n")[0]


def parameters(subject: Subject) -> int:
    """Numbers that training may change, counted on shapes."""
    from flax import nnx

    from fgvc_jax.train import tree

    shapes = tree.weights(nnx.eval_shape(subject.specification.build))["params"]
    return sum(int(np.prod(x.shape)) for x in shapes.values())


def check(split: str, run: Finished, rows: int) -> None:
    """UserError where scores and manifest are of different images."""
    expected = len(run.split(split).files)
    if expected != rows:
        raise UserError(
            f"{run.folder}: the scores of {split} have {rows:,} rows, but manifest.json lists {expected:,} "
            "images."
        )
