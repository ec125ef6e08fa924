"""`fgvc predict --format`: what a competition's server and Kaggle want, with the ids of the data."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest
import tiny
from PIL import Image

import fgvc_jax
from fgvc_jax import cli
from fgvc_jax.run import run

FOLDERS = ["04615_Lynx lynx", "04780_Ursus arctos", "04858_Vulpes vulpes"]
ORDER = "0 4858\n1 4615\n2 4780\n"
IDS, CLASSES = ("04858", "04615", "04780"), ("Vulpes vulpes", "Lynx lynx", "Ursus arctos")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The competition's layout, with the classes in another order than the folders."""
    root, rng = tmp_path_factory.mktemp("competition"), np.random.default_rng(0)
    files = [f"train/{folder}/{i}.jpg" for folder in FOLDERS for i in range(6)]
    for file in files + [f"test/{i:04d}.jpg" for i in range(5)]:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(root / file)
    (root / "labels.txt").write_text(ORDER)
    return root


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """The workdir of a run with ids, and a copy as written before there were any, with other names."""
    config = tiny.pipeline("vit_tiny_patch16_224", depth=1, width=16, heads=1)
    config.data.source, config.data.root, config.data.canvas = "competition", str(data), 16
    config.data.val_fraction = 0.2
    config.finetune.length, config.finetune.batch = "2 steps", 4
    config.phases = ("finetune",)
    workdir, plain = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("plain")
    run(config, workdir)
    shutil.copytree(workdir, plain, dirs_exist_ok=True)
    model = json.loads((plain / "finetune" / "model.json").read_text())
    del model["class_ids"]
    model["remat"] = False
    (plain / "finetune" / "model.json").write_text(json.dumps(model | {"classes": list("abc")}))
    shutil.rmtree(plain / "model")  # there was none then
    return workdir, plain


@pytest.fixture
def predict(monkeypatch, capsys, tmp_path):
    """predict(*arguments) -> (exit status, what stands in --out or None, standard error)."""

    def call(*arguments):
        out = tmp_path / "out"
        command = ["fgvc", "predict", *map(str, arguments), f"--out={out}"]
        monkeypatch.setattr(sys, "argv", command)
        status = cli.main()
        assert not list(tmp_path.glob("*.partial"))
        return status, out.read_text("utf-8") if out.exists() else None, capsys.readouterr().err

    return call


def best(workdir, data):
    """By the Python interface: label of each test image."""
    files = [str(data / "test" / f"{i:04d}.jpg") for i in range(5)]
    return fgvc_jax.load(workdir).predict(files).argmax(axis=1)


def test_ids_travel_with_the_run(finished):
    classifier = fgvc_jax.load(finished[0])
    assert (classifier.classes, classifier.class_ids) == (CLASSES, IDS)
    saved = json.loads((finished[0] / "manifest.json").read_text())
    assert (tuple(saved["classes"]), tuple(saved["ids"])) == (CLASSES, IDS)
    for file, label in saved["splits"]["train"].items():
        assert file.startswith(f"train/{IDS[label]}_{CLASSES[label]}/")
    assert fgvc_jax.load(finished[1]).class_ids == ()


def test_competition(predict, finished, data):
    status, text, err = predict(
        finished[0], data / "test", "--format=competition", "--group-name=Ünion"
    )
    assert status == 0, err
    answers = [IDS[label] for label in best(finished[0], data)]
    assert json.loads(text) == {
        "images": {f"{i:04d}.jpg": answer for i, answer in enumerate(answers)},
        "groupname": "Ünion",
    }


def test_kaggle_has_ids_or_else_names(predict, finished, data):
    for workdir, known in zip(finished, (IDS, "abc"), strict=True):
        status, text, err = predict(workdir, data / "test", "--format=kaggle")
        assert status == 0, err
        assert list(csv.reader(text.splitlines())) == [
            ["Id", "Category"],
            *([f"{i:04d}", known[label]] for i, label in enumerate(best(workdir, data))),
        ]


def test_csv_has_names(predict, finished, data):
    _, text, _ = predict(finished[0], data / "test")
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["class"] for row in rows] == [CLASSES[label] for label in best(finished[0], data)]


def test_what_cannot_be_told_is_refused(predict, finished, data, tmp_path):
    status, text, err = predict(finished[1], data / "test", "--format=competition")
    assert (status, text) == (2, None)
    assert "wants class ids" in err and "<classID>_<className>" in err
    folder = data / "train" / FOLDERS[0]
    for kind, name in (("competition", "'0.jpg'"), ("kaggle", "'0'")):
        other = data / "train" / FOLDERS[1] / "0.jpg"
        status, text, err = predict(finished[0], folder, other, f"--format={kind}")
        assert (status, text) == (2, None)
        assert f"{folder}/0.jpg and {other} are both called {name}" in err
    status, _, err = predict(finished[0], folder, other)  # whose files have their folders
    assert status == 0, err
    status, _, err = predict(finished[0], folder, "--group-name=x")
    assert status == 2 and "--group-name belongs to --format=competition" in err


@pytest.mark.parametrize("form", ["competition", "kaggle"])
def test_reasons_are_beside_a_file_that_has_no_place_for_them(
    predict, finished, data, tmp_path, form
):
    shutil.copytree(data / "test", tmp_path / "new")
    for i in range(12):
        (tmp_path / "new" / f"bad{i:02d}.jpg").write_bytes(b"no image")
    status, text, err = predict(finished[0], tmp_path / "new", f"--format={form}", "--batch=4")
    assert status == 3
    assert "12 of 17 images could not be read; they have an empty answer" in err
    if form == "competition":
        answers = json.loads(text)["images"]
    else:
        answers = {f"{r['Id']}.jpg": r["Category"] for r in csv.DictReader(text.splitlines())}
    assert len(answers) == 17
    bad = {name for name, answer in answers.items() if not answer}
    assert bad == {f"bad{i:02d}.jpg" for i in range(12)}
    with open(tmp_path / "out.errors.csv", newline="") as file:
        reasons = list(csv.DictReader(file))
    assert {r["file"] for r in reasons} == {str(tmp_path / "new" / name) for name in bad}
    assert all(r["error"].startswith("cannot be read as an image") for r in reasons)
