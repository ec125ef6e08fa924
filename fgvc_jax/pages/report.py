"""The report of a finished run: one HTML file that needs no other, and its numbers and charts as files."""

import csv
import json
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fgvc_jax import files
from fgvc_jax.data.doctor.findings import shown
from fgvc_jax.errors import UserError
from fgvc_jax.metrics import calibration
from fgvc_jax.model_folder import calibration_of
from fgvc_jax.pages import answers as asked
from fgvc_jax.pages import charts, facts, finished, looks
from fgvc_jax.pages.finished import Finished, Subject
from fgvc_jax.pages.pictures import Pictures, side_by_side, uri
from fgvc_jax.pages.render import render
from fgvc_jax.report import per_class
from fgvc_jax.tracking import panels

log = logging.getLogger(__name__)

FOLDER, PAGE = "report", "report.html"
MATRIX = 60  # classes of a matrix that is drawn
TABLE = 300  # rows of the table of classes on the page; the CSV has all


def make(run: str | os.PathLike, out: str | os.PathLike = "", *, use_model: bool = True) -> Path:
    """Writes report.html, report.json, tables/*.csv and figures/*.svg. Only files of the run are read.

    Args:
      run: the workdir of a finished run.
      out: the folder to write to; '' = RUN/report.
      use_model: heat maps, the picture of the embeddings, nearest photos and the comparator's scores, which
        need the model; without them the page says so.

    Returns:
      The page.

    Raises:
      UserError: where there is no finished run, or the folder cannot be written to.
    """
    began = time.monotonic()
    read = finished.read(run)
    subject = finished.subject(read)
    shown_rows = subject.scores if subject.scores is not None else subject.embedding
    facts.check(subject.split, read, len(shown_rows))
    folder = Path(out).expanduser() if out else read.folder / FOLDER
    report = _Report(read, subject, use_model)
    content = report.content()
    page = render("report.html", **content, seconds=time.monotonic() - began)
    try:
        for name in _written(folder):  # by an earlier report, which may have had others
            (folder / name).unlink(missing_ok=True)
        for name in ("tables", "figures"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        made = []
        for name, rows in report.tables.items():
            if rows:
                made.append(f"tables/{name}.csv")
                _write_csv(folder / made[-1], rows)
        for name, svg in report.figures.items():
            made.append(f"figures/{name}.svg")
            files.write_text(folder / made[-1], charts.standalone(svg))
        files.write_json(folder / "report.json", report.numbers | {"files": made})
        files.write_text(folder / PAGE, page)
        if read.config.log.tensorboard:
            panels.write(folder, report.panels(content["mistakes"]["items"]))
    except OSError as error:
        raise UserError(f"the report cannot be written to {folder}: {error.strerror}.") from error
    return folder / PAGE


class _Report:
    """The content of the page; `tables`, `figures` and `numbers` are filled on the way."""

    def __init__(self, run: Finished, subject: Subject, use_model: bool):
        self.run, self.subject = run, subject
        self.answers = asked.of(run, subject)
        self.pictures = _pictures(run)
        self.tables: dict[str, Sequence[dict]] = {}
        self.figures: dict[str, str] = {}
        self.numbers: dict[str, Any] = {}
        self.why_not, self.model = "", None
        if not use_model:
            self.why_not = f"The run had several processes; `fgvc report {run.folder}` adds it."
        elif isinstance(self.pictures.reader, _Unreadable):
            self.why_not = self.pictures.reader.reason
        elif not self.retrieval:  # whose embeddings are kept
            try:
                self.model = looks.model(run, subject)
            except UserError as error:
                self.why_not = f"The model cannot be read: {error}"

    def content(self) -> dict[str, Any]:
        """What the template shows."""
        run, subject = self.run, self.subject
        first, rest, tone = facts.verdict(run, subject)
        results, cost = facts.results(run, subject), facts.cost(run)
        row = facts.row_of(run, subject)
        forest = facts.forest(run, subject)
        curves = facts.curves(run, subject)
        if forest:
            self.figures["results"] = forest
        for phase, drawn in curves.items():
            self.figures |= {f"curve_{phase}_{i}": svg for i, svg in enumerate(drawn)}
        self.tables["results"] = [
            {"name": r["name"], "val": r["val"], "95 % interval": r["interval"]}
            | dict(zip(results["columns"], r["cells"], strict=True))
            for r in results["rows"]
        ]
        self.tables["cost"] = cost["rows"]
        self.numbers |= {
            "run": str(run.folder),
            "verdict": " ".join([first, *rest]),
            "split": subject.split,
            "model": {"part": subject.part, "phase": subject.name, "checkpoint": subject.which},
            "metrics": row,
            "results": [
                run.evaluation(p)[1].get("rows") or run.evaluation(p)[1].get("retrieval")
                for p in run.parts
            ],
            "cost": cost,
        }
        return {
            "title": shown(run.data["name"]),
            "run": run,
            "subject": subject,
            "model_name": f"{subject.specification.backbone}, {Path(subject.specification.method).stem}",
            "counts": {name: len(split) for name, split in run.data["splits"].items()},
            "verdict": first,
            "remarks": rest,
            "tone": tone,
            "row": row,
            "results": results,
            "forest": forest,
            "curves": curves,
            "confused": self.confused(),
            "matrix": self.matrix(),
            "classes": self.classes(),
            "mistakes": self.mistakes(),
            "mined": self.mined(),
            "reranked": self.reranked(),
            "embedding": self.embedding(),
            "calibration": self.calibration(),
            "warnings": facts.warnings(run),
            "origin": facts.origin(run),
            "cost": cost,
            "parameters": facts.parameters(subject),
            "missing": self.missing(),
            "retrieval": subject.scores is None,
        }

    def confused(self) -> list[dict]:
        """The most-confused pairs of classes, with photos of the mistakes."""
        classes, told = self.run.classes, []
        for pair in asked.confused(self.answers):
            a, b = (classes[c] for c in pair["classes"])
            sides = []
            for i, (true, answered) in enumerate(((a, b), (b, a))):
                photos = [self.photo(row) for row in pair["rows"][i]]
                sides.append((true, answered, pair["count"][i], pair["of"][i], photos))
            told.append({"names": (a, b), "sides": sides})
        self.numbers["confused"] = [
            {"true": true, "answered": answered, "count": count, "of": of}
            for pair in told
            for true, answered, count, of, _ in pair["sides"]
        ]
        self.tables["confused"] = self.numbers["confused"]
        return told

    def matrix(self) -> dict[str, Any]:
        names = [self.run.classes[c] for c in asked.occurring(self.answers)]
        if len(names) > MATRIX:
            return {"count": len(names), "svg": ""}
        found = asked.counts(self.answers)
        self.tables["confusion_matrix"] = [
            {"true \\ answered": name} | dict(zip(names, row.tolist(), strict=True))
            for name, row in zip(names, found, strict=True)
        ]
        self.figures["confusion_matrix"] = charts.matrix(found, names)
        return {"count": len(names), "svg": self.figures["confusion_matrix"]}

    def classes(self) -> dict[str, Any]:
        rows = asked.per_class_rows(self.answers, self.run.classes)
        self.tables["per_class"] = rows
        return {"rows": rows[:TABLE], "more": max(0, len(rows) - TABLE)}

    def mistakes(self) -> dict[str, Any]:
        """The worst mistakes with heat maps and the nearest training photos."""
        answers, classes = self.answers, self.run.classes
        rows = asked.worst(answers)
        items = []
        for row in rows:
            item = self.photo(row) | {
                "true": classes[answers.true[row]],
                "answered": classes[answers.answered[row]],
                "sure": float(answers.sure[row]),
                "of_true": None if answers.of_true is None else float(answers.of_true[row]),
                "heat": (),
                "photos": (),
            }
            if answers.near is not None:
                item["near"] = self.photo(answers.near[row])
            items.append(item)
        self.numbers["mistakes"] = [
            {k: v for k, v in item.items() if k not in ("uri", "near", "heat", "photos")}
            for item in items
        ]
        self.tables["mistakes"] = self.numbers["mistakes"]
        note = self.why_not
        if self.model and items and not self.retrieval:
            try:
                self._look_at(items, rows)
            except UserError as error:
                note = str(error)
        near, heat = (any(item[key] for item in items) for key in ("photos", "heat"))
        total = int((~answers.right).sum())
        return {"items": items, "note": note, "heat": heat, "near": near, "total": total}

    @property
    def retrieval(self) -> bool:
        return self.subject.scores is None

    def _look_at(self, items: list[dict], rows: list[int]) -> None:
        """Adds heat maps and nearest training photos to the mistakes whose images can be read."""
        answers, run = self.answers, self.run
        read = [
            (item, row, self.pictures.pixels(answers.files[row]))
            for item, row in zip(items, rows, strict=True)
        ]
        read = [one for one in read if one[2] is not None]
        if not read:
            return
        images, places = [one[2] for one in read], [one[1] for one in read]
        wanted = list(
            zip(answers.answered[places].tolist(), answers.true[places].tolist(), strict=True)
        )
        drawn = looks.heats(self.model, images, answers.answered[places], answers.true[places])
        embedded = self.model.embed(images, looks.BATCH)
        near = looks.nearest(run, self.subject.part, self.model, self.pictures, embedded, wanted)
        for (item, _, _), (seen, *maps), photos in zip(read, drawn, near, strict=True):
            item["uri"] = uri(seen)
            item["heat"] = [uri(x) for x in maps]
            item["photos"] = [
                {
                    "uri": self.pictures(photo.file),
                    "file": shown(photo.file),
                    "class": name,
                    "cosine": photo.cosine,
                }
                for photo, name in zip(photos, (item["answered"], item["true"]), strict=True)
                if photo
            ]

    def mined(self) -> dict[str, Any] | None:
        """The hardest mined pairs with the comparator's score; None without a mining phase."""
        run, part = self.run, self.subject.part
        phase = next((p for p in run.parts[part] if run.config[p].kind == "mine"), None)
        path = run.where(part, phase, "train_pairs.npz") if phase else None
        if path is None or not path.exists():
            return None
        train = run.split("train", part)
        with np.load(path) as saved:
            pairs = dict(saved)
        chosen = asked.hardest(pairs, train.labels)
        every = [p for rows in chosen.values() for p in rows]
        if not every:
            return None
        at = [(int(pairs["query"][p]), int(pairs["neighbour"][p])) for p in every]
        same, note = None, self.why_not
        if not note:
            try:
                same = looks.same_class(
                    run,
                    self.subject,
                    self.pictures,
                    [(train.files[q], train.files[n]) for q, n in at],
                )
                note = "" if same is not None else "The run has trained no comparator."
            except UserError as error:
                note = str(error)
        items = []
        for i, (p, places) in enumerate(zip(every, at, strict=True)):
            photos = [
                {"uri": self.pictures(train.files[x]), "file": shown(train.files[x]),
                 "class": run.classes[train.labels[x]]}
                for x in places
            ]  # fmt: skip
            items.append(
                {
                    "photos": photos,
                    "cosine": float(pairs["similarity"][p]),
                    "same": None if same is None else float(same[i]),
                }
            )
        split = len(chosen["same"])
        self.numbers["mined"] = [
            {
                "a": i["photos"][0]["file"],
                "b": i["photos"][1]["file"],
                "similarity": i["cosine"],
                "same": i["same"],
            }
            for i in items
        ]
        return {
            "same": items[:split],
            "different": items[split:],
            "note": note,
            "similarity": run.config[phase].similarity,
        }

    def reranked(self) -> dict[str, Any] | None:
        """What re-ranking by the comparator mended and broke; None where nothing was re-ranked."""
        run, subject = self.run, self.subject
        evaluation, _ = run.evaluation(subject.part)
        path = run.where(
            subject.part, evaluation, f"{subject.name}_re-ranked", subject.split, "scores.npy"
        )
        if subject.scores is None or not path.exists():
            return None
        after = np.load(path).astype(np.float64)
        found = asked.changed(subject.scores, after, self.answers.true)
        classes, new = run.classes, after.argmax(1)
        self.numbers["reranked"] = dict(found)

        def told(rows):
            return [
                self.photo(row)
                | {
                    "true": classes[self.answers.true[row]],
                    "before": classes[self.answers.answered[row]],
                    "after": classes[new[row]],
                }
                for row in rows
            ]

        return found | {"mended": told(found["mended"]), "broke": told(found["broke"])}

    def embedding(self) -> dict[str, Any]:
        """A picture of the embeddings of the split."""
        subject, answers = self.subject, self.answers
        rows = looks.sample(len(answers.true), looks.POINTS)
        if subject.embedding is not None:
            vectors = subject.embedding[rows]
        elif self.model is None:
            return {"svg": "", "note": self.why_not}
        else:
            try:
                vectors = looks.embed(
                    self.model, self.pictures, [answers.files[row] for row in rows]
                )
            except UserError as error:
                return {"svg": "", "note": str(error)}
        if len(vectors) < 3:
            return {
                "svg": "",
                "note": "There are too few images for a picture of their embeddings.",
            }
        places, how = looks.project(vectors)
        classes = self.run.classes
        notes = [
            f"{shown(answers.files[row])}: {classes[answers.true[row]]}"
            + ("" if answers.right[row] else f", answered {classes[answers.answered[row]]}")
            for row in rows
        ]
        svg = charts.points(places, answers.true[rows], classes, ~answers.right[rows], notes)
        self.figures["embedding"] = svg
        return {"svg": svg, "how": how, "count": len(rows), "of": len(answers.true)}

    def calibration(self) -> dict[str, Any] | None:
        """Reliability, ECE, risk and coverage; None of a model without probabilities."""
        answers = self.answers
        if self.retrieval:
            return None
        found = calibration.reliability(answers.sure, answers.right)
        coverage, risk, area = calibration.risk_coverage(answers.sure, answers.right)
        self.figures["reliability"] = charts.reliability(found)
        self.figures["risk_coverage"] = charts.lines(
            [charts.Line("risk", coverage.tolist(), risk.tolist())],
            "Risk and coverage",
            "share of the images that are answered, surest first",
            "share of these that is wrong",
            show=charts.percent,
            show_x=charts.percent,
            size=(440, 300),
        )
        half = float(risk[max(0, len(risk) // 2 - 1)])
        phase = self.run.where(self.subject.part, self.subject.name)
        warmth = calibration_of(phase).get("temperature")
        after = warmth and calibration.softmax(self.subject.scores / warmth).max(axis=1)
        after = warmth and calibration.reliability(after, answers.right).ece
        self.numbers["calibration"] = {
            "ece": found.ece,
            "aurc": area,
            "risk_at_half": half,
            "temperature": warmth,
            "ece_after": after,
        }
        self.tables["reliability"] = [
            {"from": found.edges[i], "to": found.edges[i + 1], "count": int(found.count[i]),
             "confidence": found.confidence[i], "accuracy": found.accuracy[i]}
            for i in range(len(found.count))
        ]  # fmt: skip
        return {
            "charts": [self.figures["reliability"], self.figures["risk_coverage"]],
            "ece": found.ece,
            "aurc": area,
            "half": half,
            "temperature": warmth,
            "after": after,
            "few": charts.FEW,
            "sure": float(answers.sure.mean()),
            "right": float(answers.right.mean()),
        }

    def photo(self, row: int) -> dict[str, str]:
        file = self.answers.files[row]
        return {"uri": self.pictures(file), "file": shown(file)}

    def panels(self, mistakes: Sequence[dict]) -> dict[str, Image.Image]:
        """For TensorBoard: the sheet of mined pairs, and each mistake with its heat maps in a row."""
        found = {}
        for name in self.run.parts[self.subject.part]:
            path = self.run.where(self.subject.part, name, "hardest_pairs.png")
            if path.exists():
                with Image.open(path) as sheet:
                    found[f"pairs/{name}"] = sheet.convert("RGB")
        for place, item in enumerate(mistakes, 1):
            if item["uri"]:
                title = shown(f"{place:02} {item['true']} taken for {item['answered']}")
                found[f"mistakes/{title}"] = side_by_side([item["uri"], *item["heat"]])
        return found

    def missing(self) -> str:
        """A sentence on the images that cannot be read; '' where all can."""
        missing = self.pictures.missing
        if not missing:
            return ""
        first = next(iter(missing.values()))
        return (
            f"{len(missing):,} of the images shown here cannot be read any more, the first: {first}"
        )


class _Unreadable:
    """In place of a reader, where a run's images are gone altogether."""

    def __init__(self, reason: str):
        self.reason = reason

    def __call__(self, file: str) -> np.ndarray:
        raise UserError(self.reason)


def _pictures(run: Finished) -> Pictures:
    try:
        return Pictures(run.reader)
    except UserError as error:
        return Pictures(_Unreadable(str(error)))


def _written(folder: Path) -> list[str]:
    """The files that an earlier report there lists as its own; nothing else is ever removed."""
    path = folder / "report.json"
    try:
        found = json.loads(path.read_text()).get("files", []) if path.exists() else []
    except (ValueError, AttributeError):
        return []
    known = re.compile(r"(tables/\w+\.csv|figures/\w+\.svg)")
    return [name for name in found if isinstance(name, str) and known.fullmatch(name)]


def _write_csv(path: Path, rows: Sequence[dict]) -> None:
    if path.stem == "per_class":
        per_class.write_csv(path, rows)
        return
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
