"""The report of a run: what it says against the run's files, what it leaves out, and in a browser."""

import csv
import io
import json
import logging
import os
import shutil
import sys
import time
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import WIDTHS, needs_browser, visit
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fgvc_jax import cli
from fgvc_jax import run as runs
from fgvc_jax.errors import UserError
from fgvc_jax.pages import facts, report
from fgvc_jax.pages import finished as finishing


def numbers(folder):
    return json.loads((folder / "report" / "report.json").read_text())


def page(folder):
    return (folder / "report" / "report.html").read_text()


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# What it says


def test_the_run_ends_with_it(finished):
    assert (finished / "report" / "report.html").stat().st_size < 20e6
    text = page(finished)
    for heading in ("Results", "Curves", "Most-confused", "Confusion matrix", "worst mistakes",
                    "mined pairs", "Re-ranking", "Embedding", "Calibration", "Data warnings",
                    "Origin and cost"):  # fmt: skip
        assert heading in text
    assert "Heat maps are Grad-CAM's" in text and "nearest training photo of each" in text
    assert "fgvc train --config=x.py &#39;--workdir=a b&#39;" in text
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text
    assert "<b>bee" not in text and "&lt;b&gt;bee" in text


def test_its_pictures_are_in_tensorboard(finished):
    """Read back by TensorBoard's own loader."""
    found = EventAccumulator(str(finished / "report"), size_guidance={"images": 0}).Reload()
    mistakes = numbers(finished)["mistakes"]
    tags = found.Tags()["images"]
    assert len(tags) == len(mistakes) + 1 and "pairs/mine" in tags
    assert [t for t in tags if t.startswith("mistakes/01 ")] == [
        f"mistakes/01 {mistakes[0]['true']} taken for {mistakes[0]['answered']}"
    ]
    for tag in tags:
        (image,) = found.Images(tag)
        with Image.open(io.BytesIO(image.encoded_image_string)) as picture:
            assert picture.size == (image.width, image.height)
    # A ViT of two tokens a side has maps: the photo and two heat maps stand in a row.
    assert image.width >= image.height


def test_numbers_are_those_of_the_scores(finished):
    said = numbers(finished)
    scores = np.load(finished / "evaluate" / "retrain" / "test" / "scores.npy")
    split = json.loads((finished / "manifest.json").read_text())["splits"]["test"]
    files, labels = list(split), np.array(list(split.values()))
    assert said["model"] == {"part": "", "phase": "retrain", "checkpoint": "best"}
    assert said["metrics"]["top1"] == pytest.approx(accuracy_score(labels, scores.argmax(1)))
    macro = f1_score(labels, scores.argmax(1), average="macro")
    assert said["metrics"]["macro_f1"] == pytest.approx(macro)
    wrong = np.flatnonzero(scores.argmax(1) != labels)
    assert {m["file"] for m in said["mistakes"]} == {files[i] for i in wrong[:24]}
    of_true = [m["of_true"] for m in said["mistakes"]]
    assert of_true == sorted(of_true)
    after = np.load(finished / "evaluate" / "retrain_re-ranked" / "test" / "scores.npy")
    mended = int(((after.argmax(1) == labels) & (scores.argmax(1) != labels)).sum())
    assert said["reranked"]["b"] == mended
    assert said["verdict"].startswith("The pipeline (retrain) is ")
    assert all(0 <= pair["same"] <= 1 for pair in said["mined"])


def test_tables_and_figures_lie_beside(finished):
    folder = finished / "report"
    matrix = list(csv.reader((folder / "tables" / "confusion_matrix.csv").open()))
    classes = json.loads((finished / "manifest.json").read_text())["classes"]
    assert matrix[0][1:] == classes
    assert sum(int(x) for row in matrix[1:] for x in row[1:]) == 15
    of_class = list(csv.DictReader((folder / "tables" / "per_class.csv").open()))
    assert {row["class"] for row in of_class} == set(classes)
    for name in (
        "results",
        "curve_finetune_0",
        "confusion_matrix",
        "embedding",
        "reliability",
        "risk_coverage",
    ):
        ElementTree.parse(folder / "figures" / f"{name}.svg")


def test_heat_maps_and_nearest_photos_are_there(finished):
    text = page(finished)
    mistakes = len(numbers(finished)["mistakes"])
    assert mistakes and text.count('alt="heat map for') == 2 * mistakes
    assert text.count("nearest ") >= 2 * mistakes


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_in_a_browser(finished, width):
    where = finished / "report" / "report.html"
    assert visit(where, width, dark=width < 1000).faults() == []


def test_the_command_writes_elsewhere(finished, tmp_path, monkeypatch, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    monkeypatch.setattr(sys, "argv", ["fgvc", "report", str(finished), f"--out={tmp_path / 'out'}"])
    monkeypatch.setattr(report.looks, "model", no_model)
    assert cli.main() == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.html")
    assert (tmp_path / "out" / "report.json").exists()
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}


def no_model(*arguments):
    raise UserError("no model here")


# What is not there


def test_without_the_model_it_says_so(copy):
    report.make(copy, use_model=False)
    text = page(copy)
    assert "heat map for" not in text and "fgvc report" in text
    assert "Without a picture" in text


def test_without_images_it_says_so(copy):
    edit(copy / "config.json", lambda c: c["data"].update(root="/nowhere"))
    edit(copy / "manifest.json", lambda m: m.update(root="/nowhere"))
    report.make(copy)
    text = page(copy)
    assert "cannot be read any more" in text and "not readable" in text
    assert text.count("<img") == 0


def test_without_test_labels_validation_stands_in(copy):
    edit(copy / "manifest.json", lambda m: m["splits"].pop("test"))

    def drop(done):
        for row in done["rows"]:
            row.pop("test", None), row.pop("last_test", None)
        done["comparison"]["split"] = "val"

    edit(copy / "evaluate" / "DONE.json", drop)
    for folder in (copy / "evaluate").glob("*/test"):
        shutil.rmtree(folder)
    report.make(copy, use_model=False)
    assert numbers(copy)["split"] == "val"
    assert "these numbers flatter the model" in page(copy)


def test_a_run_without_pipeline_has_no_mined_pairs(copy):
    edit(copy / "config.json", lambda c: c.update(phases=["finetune", "evaluate"]))

    def keep(done):
        done["rows"] = [row for row in done["rows"] if row["name"] == "finetune"]
        del done["comparison"]

    edit(copy / "evaluate" / "DONE.json", keep)
    for name in ("retrain", "control", "retrain_re-ranked"):
        shutil.rmtree(copy / "evaluate" / name)
    for name in ("embed", "mine", "pairs", "retrain", "control"):
        shutil.rmtree(copy / name)
    report.make(copy, use_model=False)
    text = page(copy)
    assert "mined pairs" not in text and "Re-ranking" not in text
    assert numbers(copy)["verdict"].startswith("The model (finetune) is right on ")
    # No pictures are described that are not there.
    assert "Heat maps are" not in text and "nearest training photo" not in text
    assert "says nothing about what the method adds" in numbers(copy)["verdict"]


def test_embeddings_alone(copy):
    """A run of a model that only embeds: its answer is the class of the nearest image."""
    random = np.random.default_rng(0)
    labels = finishing.read(copy).split("test").labels
    found = (np.eye(3)[labels] + 0.5 * random.normal(size=(15, 3))).astype(np.float32)
    measured = {"recall@1": 0.8, "map@r": 0.5, "count": 15}

    def embeds(done):
        del done["rows"], done["comparison"]
        done["retrieval"] = [{"name": "finetune", "test": measured, "val": measured}]

    edit(copy / "evaluate" / "DONE.json", embeds)
    for folder in (copy / "evaluate").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    (copy / "evaluate" / "finetune" / "test").mkdir(parents=True)
    np.save(copy / "evaluate" / "finetune" / "test" / "embedding.npy", found)
    report.make(copy, use_model=False)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    cosine = unit @ unit.T - 9 * np.eye(15)
    wrong = labels[cosine.argmax(1)] != labels
    said = numbers(copy)
    assert said["verdict"].startswith("For 80.0 % of 15 test images")
    assert len(said["mistakes"]) == wrong.sum()
    assert "nothing to calibrate" in page(copy)
    (figure,) = (copy / "report" / "figures").glob("embedding.svg")
    circles = [e for e in ElementTree.parse(figure).iter() if e.tag.endswith("circle")]
    assert len(circles) == 15
    assert sum("stroke" in c.attrib for c in circles) == wrong.sum()


def test_scores_of_other_images_are_refused(copy):
    edit(copy / "manifest.json", lambda m: m["splits"]["test"].popitem())
    with pytest.raises(UserError, match="15 rows, but manifest"):
        report.make(copy)


def test_no_run_and_an_unfinished_one(tmp_path, copy):
    with pytest.raises(UserError, match="not the workdir of a run"):
        report.make(tmp_path)
    (copy / "evaluate" / "DONE.json").unlink()
    with pytest.raises(UserError, match="no finished evaluation"):
        report.make(copy)


def test_the_page_is_bounded(copy, monkeypatch):
    """A class more than the matrix and the table may have: they are cut, the CSV is not."""
    monkeypatch.setattr(report, "MATRIX", 2)
    monkeypatch.setattr(report, "TABLE", 2)
    report.make(copy, use_model=False)
    assert "A matrix of 3 classes is too large" in page(copy)
    assert "tables/per_class.csv has 1 more" in page(copy)
    assert not (copy / "report" / "figures" / "confusion_matrix.svg").exists()
    assert len((copy / "report" / "tables" / "per_class.csv").read_text().splitlines()) == 4


# At the end of a run


def test_a_finished_run_keeps_its_report(finished, config, monkeypatch):
    monkeypatch.setattr(report, "make", no_model)
    before = (finished / "report" / "report.html").stat().st_mtime_ns
    assert runs.run(config, finished)
    assert (finished / "report" / "report.html").stat().st_mtime_ns == before


def test_a_report_that_fails_leaves_the_run_finished(copy, config, monkeypatch, caplog):
    shutil.rmtree(copy / "report")

    def broken(*arguments, **named):
        raise RuntimeError("torn")

    monkeypatch.setattr(report, "make", broken)
    with caplog.at_level(logging.INFO, "fgvc_jax"):
        results = runs.run(config, copy)
    assert results[""]["evaluate"]["rows"]
    (record,) = [r for r in caplog.records if "could not be made" in r.getMessage()]
    assert record.levelname == "WARNING"
    assert "RuntimeError: torn" in record.getMessage()
    assert f"fgvc report {copy}" in record.getMessage()


def test_an_older_report_is_made_again(copy, config, monkeypatch):
    later = time.time() + 60
    os.utime(copy / "evaluate" / "DONE.json", (later, later))
    made = []
    monkeypatch.setattr(report, "make", lambda folder, use_model: made.append((folder, use_model)))
    runs.run(config, copy)
    assert made == [(copy.resolve(), True)]


def test_licences_are_stated():
    assert "Apache" in facts.licence("jax")
    assert facts.licence("no such package") == ""


def test_files_of_others_in_the_folder_stay(finished, tmp_path):
    """A second report there removes what the first has written and the second does not."""
    mine = ["tables/mine.csv", "figures/mine.svg", "events.out.tfevents.mine", "notes.txt"]
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    report.make(finished, tmp_path, use_model=False)
    edit(tmp_path / "report.json", lambda x: x["files"].append("tables/old.csv"))
    edit(tmp_path / "report.json", lambda x: x["files"].append("../outside.csv"))
    (tmp_path / "tables" / "old.csv").write_text("of an earlier report")
    (tmp_path.parent / "outside.csv").write_text("not in the folder")
    report.make(finished, tmp_path, use_model=False)
    assert all((tmp_path / name).read_text() == "mine" for name in mine)
    assert not (tmp_path / "tables" / "old.csv").exists()
    assert (tmp_path.parent / "outside.csv").exists()
    assert len(list(tmp_path.glob("events.out.tfevents.*.pictures"))) == 1
