"""Several finished runs beside each other: a row each, tests on the images that they share, an ensemble."""

import csv
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fgvc_jax.errors import UserError
from fgvc_jax.metrics import classification as metrics
from fgvc_jax.metrics import paired
from fgvc_jax.pages import charts, facts, finished
from fgvc_jax.pages.finished import Finished, Subject

METRICS = {"classify": ("top1", "mean_class_accuracy"), "retrieve": ("recall@1", None)}
MOST = 30  # classes of a chart of differences


class Entry(NamedTuple):
    """A run that is compared."""

    name: str
    run: Finished
    subject: Subject


def read(folders: Sequence[str | os.PathLike]) -> list[Entry]:
    """The runs, named by the part of their folders in which they differ.

    Raises:
      UserError: fewer than two, one twice, or one that is not finished.
    """
    if len(folders) < 2:
        raise UserError("compare wants two runs or more.")
    paths = [Path(folder).expanduser().resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UserError("compare: a run is named twice.")
    runs = [finished.read(path) for path in paths]
    short = len({path.name for path in paths}) == len(paths)
    common = os.path.commonpath(paths)
    names = [path.name if short else os.path.relpath(path, common) for path in paths]
    entries = [
        Entry(name, run, finished.subject(run)) for name, run in zip(names, runs, strict=True)
    ]
    for entry in entries:
        if entry.subject.scores is not None:
            facts.check(entry.subject.split, entry.run, len(entry.subject.scores))
    return entries


def why_not(entries: Sequence[Entry]) -> str:
    """Why the runs cannot be compared image by image; '' where they can."""
    first = entries[0]
    for one in entries:
        if one.subject.scores is None:
            return f"{one.name} only embeds images and gives no classes"
        if one.run.classes != first.run.classes:
            return f"{first.name} and {one.name} have different classes"
        if one.subject.split != first.subject.split:
            return f"{first.name} was scored on {first.subject.split}, {one.name} on {one.subject.split}"
        here, there = (x.run.split(first.subject.split) for x in (first, one))
        if here.files != there.files or not np.array_equal(here.labels, there.labels):
            return (
                f"the {first.subject.split} images of {first.name} and {one.name} are not the same"
            )
    return ""


def row(entry: Entry, parents: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A run's row: shares, counts and seconds as numbers; None where there are none."""
    run, subject = entry.run, entry.subject
    main, mean = METRICS["classify" if subject.scores is not None else "retrieve"]
    phase = run.config[subject.name]
    by_seed = facts.over_seeds(run, subject)
    top = [m[main] for m in by_seed]
    done = run.parts[subject.part]
    images = sum(r.get("images", 0) for r in done.values())
    steps = sum(r.get("seconds_by_kind", {}).get("steps", 0) for r in done.values())
    interval = facts.row_of(run, subject)
    return {
        "run": entry.name,
        "model": subject.specification.backbone,
        "optimizer": phase.optimizer.name + (" + SAM" if phase.sam.rho else ""),
        "method": Path(subject.specification.method).stem,
        "phase": subject.name,
        "split": subject.split,
        "metric": main,
        "top1": float(np.mean(top)),
        "sd": float(np.std(top, ddof=1)) if len(top) > 1 else None,
        "low": interval.get("top1_low") if len(top) == 1 else None,
        "high": interval.get("top1_high") if len(top) == 1 else None,
        "seeds": len(top),
        "mean_class_accuracy": float(np.mean([m[mean] for m in by_seed])) if mean else None,
        "parameters": facts.parameters(subject),
        "seconds": facts.cost(run)["seconds"],
        "images_per_second": images / steps if steps else None,
        **_levels(subject.scores, run, subject, parents),
    }


def ensemble(entries: Sequence[Entry], parents: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The row of the mean of the runs' probabilities; they have scored the same images."""
    first = entries[0]
    mean = np.mean([finished.probabilities(e.subject.scores) for e in entries], axis=0)
    labels = first.run.split(first.subject.split).labels
    with np.errstate(divide="ignore"):
        scores = np.log(mean)
    found = metrics.classification(scores, labels, len(first.run.classes))
    empty = dict.fromkeys(("model", "optimizer", "method", "sd", "images_per_second"))
    return empty | {
        "run": f"ensemble of {len(entries)}",
        "phase": "",
        "split": first.subject.split,
        "metric": "top1",
        "top1": found["top1"],
        "low": found["top1_low"],
        "high": found["top1_high"],
        "seeds": 1,
        "mean_class_accuracy": found["mean_class_accuracy"],
        "parameters": sum(facts.parameters(e.subject) for e in entries),
        "seconds": sum(facts.cost(e.run)["seconds"] for e in entries),
        **_levels(scores, first.run, first.subject, parents),
    }


def tests(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Each two runs on the same images: McNemar with Holm's correction, the difference with its interval.

    Of several seeds the first is compared, of a refit the refitted model.
    """
    first = entries[0]
    labels = first.run.split(first.subject.split).labels
    right = [entry.subject.scores.argmax(1) == labels for entry in entries]
    found = []
    for i, j in itertools.combinations(range(len(entries)), 2):
        test, interval = metrics.mcnemar(right[i], right[j]), paired.bootstrap(right[i], right[j])
        found.append(
            {"a": entries[i].name, "b": entries[j].name, "only_a": test["b"], "only_b": test["c"]}
        )
        found[-1] |= {"p": test["p"], **interval}
    for one, p in zip(found, paired.holm([one["p"] for one in found]), strict=True):
        one["p_holm"] = float(p)
    return found


def headline(rows: Sequence[Mapping], tests: Sequence[Mapping]) -> str:
    """Which run has the highest accuracy, and whether that holds against the next one."""
    first, second = sorted(rows, key=lambda row: -row["top1"])[:2]
    if first["metric"] != second["metric"] or first["split"] != second["split"]:
        return f"{len(rows)} runs that were not measured alike"
    name = "top-1" if first["metric"] == "top1" else "Recall@1"
    text = f"{first['run']} has the highest {name}, {100 * first['top1']:.1f} % on {first['split']}"
    for test in tests:
        if {test["a"], test["b"]} == {first["run"], second["run"]}:
            holds = "is more than chance" if test["p_holm"] < 0.05 else "may be chance"
            text += f"; its lead over {second['run']} {holds} (p = {test['p_holm']:.2g} by Holm)"
    return text + "."


def read_parents(path: str | os.PathLike, classes: Sequence[str]) -> dict[str, np.ndarray]:
    """{'family': int [C]}: by level the parent of each class, from a CSV with a header: class, then levels.

    Raises:
      UserError: for a file that cannot be read, or in which a class is missing or stands twice.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"--parents={path} cannot be read as a CSV: {error}.") from None
    if len(header) < 2 or any(len(row) != len(header) for row in rows):
        raise UserError(
            f"--parents={path}: every line must have {max(2, len(header))} columns, the first line a name "
            "for each, such as 'class,family'."
        )
    of_class = {row[0]: row[1:] for row in rows}
    if len(of_class) < len(rows):
        raise UserError(f"--parents={path}: a class stands twice in the first column.")
    missing = [name for name in classes if name not in of_class]
    if missing:
        raise UserError(
            f"--parents={path} lacks {len(missing):,} of {len(classes):,} classes, the first: {missing[0]!r}."
        )
    return {
        level: np.unique([of_class[name][i] for name in classes], return_inverse=True)[1]
        for i, level in enumerate(header[1:])
    }


def _levels(scores, run: Finished, subject: Subject, parents: Mapping[str, np.ndarray]) -> dict:
    """{'family accuracy': share}: how often the answer has the right parent."""
    if scores is None:
        return {f"{level} accuracy": None for level in parents}
    labels, answered = run.split(subject.split).labels, scores.argmax(1)
    return {
        f"{level} accuracy": float((of[answered] == of[labels]).mean())
        for level, of in parents.items()
    }


def overlaid(entries: Sequence[Entry]) -> list[str]:
    """Validation over images trained on, the runs in one chart; and their losses."""
    metric = "Recall@1 or top-1"
    if all(entry.subject.scores is not None for entry in entries):
        metric = "top-1"
    drawn = []
    for names, title, y, show in (
        (("val/top1", "val/recall@1"), "Validation", metric, charts.percent),
        (("train/loss",), "Training loss", "loss", charts.number),
    ):
        series = []
        for entry in entries:
            part, phase = entry.subject.part, entry.subject.name
            lines = finished.curve(entry.run, part, phase)
            done = entry.run.parts[part][phase]
            each = done["images"] / done["steps"]
            points = next((lines[name] for name in names if name in lines), [])
            if points:
                steps, values = zip(*points, strict=True)
                series.append(charts.Line(entry.name, [each * s for s in steps], values))
        if series:
            label = "images trained on in the phase that is compared"
            drawn.append(charts.lines(series, title, label, y, show=show, size=(480, 290)))
    return drawn


def by_class(entries: Sequence[Entry]) -> list[str]:
    """For each run but the first a chart of the classes in which it differs most from the first."""
    first = entries[0]
    labels, classes = first.run.split(first.subject.split).labels, first.run.classes
    shares = []
    for entry in entries:
        counts = metrics.confusion_matrix(entry.subject.scores.argmax(1), labels, len(classes))
        shares.append(metrics.by_class(counts)[0])
    drawn = []
    for entry, share in zip(entries[1:], shares[1:], strict=True):
        gain = share - shares[0]
        kept = [
            c for c in np.argsort(-np.abs(gain), kind="stable") if np.isfinite(gain[c]) and gain[c]
        ]
        rows = sorted(((classes[c], float(gain[c])) for c in kept[:MOST]), key=lambda r: -r[1])
        if rows:
            title = f"{entry.name} less {first.name}, accuracy by class"
            drawn.append(charts.differences(rows, title, "percentage points"))
    return drawn
