"""Predictions one can act on, from a run and from its model folder alone: columns, formats, views, resume."""

import csv
import json
import os
import shutil
import sys

import jax
import numpy as np
import pyarrow.parquet
import pytest
import tiny
from PIL import Image
from safetensors.numpy import load_file

import fgvc_jax
from fgvc_jax import cli, inference, trained
from fgvc_jax.errors import UserError
from fgvc_jax.predictions import accept_from, predictions
from fgvc_jax.run import run
from fgvc_jax.train.stop import Interrupted, Stop

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noisy 16 x 16 photos; a class has a hue, so that most can be told."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 8), ("test", 4)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 150, (16, 16, 3))
                pixels[..., label] += 40
                path = root / split / name / f"{number}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def config(photos):
    made = tiny.pipeline("vit_tiny_patch16_224", depth=1, width=16, heads=1)
    made.data.source, made.data.root, made.data.canvas = "folder", str(photos), 40
    for name in ("finetune", "pairs", "retrain", "control"):
        made[name].length = made[name].validation.every = "6 steps"
        made[name].batch = 16
    return made


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """The workdir of the whole pipeline."""
    workdir = tmp_path_factory.mktemp("run")
    run(config(photos), workdir)
    return workdir


@pytest.fixture(scope="module")
def alone(finished, tmp_path_factory):
    """Its model folder, somewhere else."""
    folder = tmp_path_factory.mktemp("elsewhere") / "my_model"
    shutil.copytree(finished / "model", folder)
    return folder


@pytest.fixture(scope="module")
def files(finished):
    """The test images in the order of the manifest."""
    manifest = json.loads((finished / "manifest.json").read_text())
    return [f"{manifest['root']}/{file}" for file in manifest["splits"]["test"]]


@pytest.fixture
def predict(monkeypatch, capsys, tmp_path):
    """predict(*arguments) -> (exit status, text of --out or None, standard error)."""

    def call(*arguments, out="preds.csv"):
        command = ["fgvc", "predict", *map(str, arguments), f"--out={tmp_path / out}"]
        monkeypatch.setattr(sys, "argv", command)
        status = cli.main()
        path = tmp_path / out
        text = path.read_text() if path.suffix == ".csv" and path.is_file() else None
        return status, text, capsys.readouterr().err

    return call


def rows(text):
    return list(csv.DictReader(text.splitlines()))


def test_the_folder_alone_is_the_run(finished, alone, files):
    ours, theirs = fgvc_jax.load(alone), fgvc_jax.load(finished)
    assert ours.phase == alone and theirs.phase.parent == finished
    np.testing.assert_array_equal(ours.predict(files), theirs.predict(files))
    assert ours.classes == CLASSES and ours.metrics == theirs.metrics
    for split, count in (("val", 24), ("test", 12)):
        scores = np.load(finished / "evaluate" / theirs.phase.name / split / "scores.npy")
        assert len(scores) == count
    scores = scores.astype(np.float64) / ours.temperature
    expected = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    # One program compiled for other batches: the last bits of float32 sums.
    np.testing.assert_allclose(ours.predict(files), expected, rtol=0, atol=1e-5)


def test_the_folder_is_readable_without_us(finished, alone):
    arrays = load_file(alone / "model.safetensors")
    config = json.loads((alone / "config.json").read_text())
    assert config["backbone"] == "vit_tiny_patch16_224" and config["method"] == "baseline"
    classes = json.loads((alone / "classes.json").read_text())
    assert [entry["name"] for entry in classes] == list(CLASSES)
    assert arrays["head/kernel"].shape == (16, 3)
    view = json.loads((alone / "preprocessing.json").read_text())
    assert (view["size"], view["resize"], view["canvas"]) == (16, 16, 40)
    support = np.load(alone / "support.npz")
    assert support["embedding"].shape == (48, 16) and set(support["label"]) == {0, 1, 2}
    assert support["files"][0].startswith("train/ant/")
    card = (alone / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: fgvc_jax\n") and "ant, bee, cat" in card
    done = json.loads((finished / "evaluate" / "DONE.json").read_text())
    row = next(r for r in done["rows"] if r["name"] == config["about"]["phase"])
    assert f"| test | 12 | {100 * row['test']['top1']:.1f} % |" in card


def test_calibration_is_of_validation_alone(finished, alone):
    found = json.loads((alone / "calibration.json").read_text())
    phase = fgvc_jax.load(finished).phase.name
    scores = np.load(finished / "evaluate" / phase / "val" / "scores.npy")
    manifest = json.loads((finished / "manifest.json").read_text())
    labels = np.array(list(manifest["splits"]["val"].values()))
    assert found["images"] == len(labels) == 24
    assert found["right"] == (scores.argmax(1) == labels).astype(int).tolist()
    shares = np.exp(scores / found["temperature"])
    shares = (shares / shares.sum(1, keepdims=True)).max(1)
    np.testing.assert_allclose(found["confidence"], shares, rtol=0, atol=1e-5)
    assert len(found["reranked"]["right"]) == 24 and found["distance"]["neighbour"] == 5


def test_columns(predict, finished, photos, files, tmp_path):
    shutil.copytree(photos / "test", tmp_path / "new")
    (tmp_path / "new" / "ant" / "bad.png").write_bytes(b"")
    Image.new("RGB", (16, 16), "white").save(tmp_path / "new" / "cat" / "white.png")
    status, text, err = predict(
        finished, tmp_path / "new", "--topk=3", "--precision=0.6", "--batch=5"
    )
    assert status == 3, err
    table = rows(text)
    assert len(table) == 14
    classifier = fgvc_jax.load(finished)
    accept = accept_from(classifier, 0.6)
    embedded = classifier.embed([r["file"] for r in table if not r["error"]])
    probabilities = iter(classifier.predict([r["file"] for r in table if not r["error"]]))
    train = classifier.support
    unit = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
    lengths = np.linalg.norm(train.embedding, axis=1, keepdims=True)
    cosines = iter(np.sort(unit @ (train.embedding / lengths).T, axis=1))
    far = classifier.calibration["distance"]["value"]
    for row in table:
        if row["error"]:
            assert row["file"].endswith("bad.png") and row["error"].startswith("cannot be read")
            assert not any(v for k, v in row.items() if k not in ("file", "error"))
            continue
        p, cosine = next(probabilities), next(cosines)
        order = np.argsort(-p)
        assert [row["class"], row["second"], row["class_3"]] == [CLASSES[i] for i in order]
        shares = [
            row["probability"],
            row["second_probability"],
            row["probability_3"],
            row["margin"],
        ]
        expected = [*p[order], p[order[0]] - p[order[1]]]
        # Other batches: the last bits; written with six digits.
        np.testing.assert_allclose(np.array(shares, float), expected, rtol=0, atol=3e-6)
        accepted = accept.value is not None and float(row["probability"]) >= accept.value
        assert row["decision"] == ("accept" if accepted else "review")
        assert abs(float(row["distance"]) - (1 - cosine[-1])) < 1e-5
        if abs(1 - cosine[-5] - far) > 1e-5:  # nearer, the last bits of float32 decide
            assert row["unlike"] == ("yes" if 1 - cosine[-5] > far else "no")
        assert row["nearest"].startswith(f"{photos}/train/{row['nearest_class']}/")
    assert "accepted from probability" in err and "to review" in err


def test_without_the_run_nearest_images_are_names(predict, alone, files):
    status, text, err = predict(alone, *files)
    assert status == 0, err
    assert all(row["nearest"].startswith("train/") for row in rows(text))


def test_formats_hold_the_same_rows(predict, finished, files, tmp_path):
    predict(finished, *files)
    assert predict(finished, *files, "--format=json", out="p.json")[0] == 0
    assert predict(finished, *files, "--format=parquet", out="p.parquet")[0] == 0
    table = rows((tmp_path / "preds.csv").read_text())
    found = json.loads((tmp_path / "p.json").read_text())
    assert pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pylist() == found
    for one, other in zip(table, found, strict=True):
        assert list(one) == list(other)
        for key, value in other.items():
            if isinstance(value, bool):
                assert one[key] == ("yes" if value else "no")
            elif isinstance(value, float):
                assert abs(float(one[key]) - value) < 1e-9
            else:
                assert one[key] == (value or "")


def test_views_are_averaged(finished, photos):
    classifier = fgvc_jax.load(finished)
    rng = np.random.default_rng(3)
    wide = [rng.integers(0, 256, (16, 40, 3), dtype=np.uint8) for _ in range(3)]
    middle = [x[:, 12:28] for x in wide]

    def mean(*views):
        return np.mean([classifier.predict(list(view)) for view in views], axis=0)

    found = [a.probabilities for a in classifier.stream(wide, 2, tta="flip")]
    expected = mean(middle, [x[:, ::-1].copy() for x in middle])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # the order of float32 sums
    found = [a.probabilities for a in classifier.stream(wide, 2, tta="five_crop")]
    left, right = [x[:, :16] for x in wide], [x[:, 24:] for x in wide]
    np.testing.assert_allclose(found, mean(middle, left, right, left, right), rtol=0, atol=1e-5)
    with pytest.raises(UserError, match=r"'flp' is unknown; did you mean 'flip'"):
        next(classifier.stream(wide, tta="flp"))


def test_reranked_as_the_evaluation_did(finished, alone, files):
    classifier = fgvc_jax.load(alone)
    classifier.calibration = classifier.calibration | {"temperature": 1.0}
    if classifier.specification != fgvc_jax.load(finished, "retrain").specification:
        pytest.fail("the folder holds another model")
    found = [a.probabilities for a in classifier.stream(files, rerank=True)]
    if json.loads((alone / "config.json").read_text())["about"]["phase"] == "retrain":
        name = "retrain_re-ranked"
        scores = np.load(finished / "evaluate" / name / "test" / "scores.npy").astype(np.float64)
        expected = np.exp(scores - scores.max(1, keepdims=True))
        expected /= expected.sum(1, keepdims=True)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)  # support in half precision
    plain = classifier.predict(files)
    assert np.abs(found - plain).max() > 1e-4  # the comparator has a say


def test_reranked_validation_is_what_the_threshold_was_chosen_on(finished, alone):
    manifest = json.loads((finished / "manifest.json").read_text())
    val = [f"{manifest['root']}/{file}" for file in manifest["splits"]["val"]]
    classifier = fgvc_jax.load(alone)
    for rerank in (False, True):
        found = [a.probabilities.max() for a in classifier.stream(val, rerank=rerank)]
        calibration = classifier.calibration["reranked"] if rerank else classifier.calibration
        # The training images' embeddings are kept in half precision.
        np.testing.assert_allclose(found, calibration["confidence"], rtol=0, atol=1e-3)


def test_rerank_without_a_comparator(finished, predict, files):
    status, text, err = predict(finished / "finetune", *files, "--rerank")
    assert (status, text) == (2, None) and "has no comparator to re-rank with" in err


def test_out_is_no_folder(predict, finished, files, tmp_path):
    (tmp_path / "preds.csv").mkdir()
    command_status, _, err = predict(finished, *files, "--format=json", out="preds.csv/")
    assert command_status == 2 and "is a folder; name a file" in err


def test_a_model_folder_is_no_run(finished, alone):
    with pytest.raises(UserError, match=r"is a model folder, which fgvc predict.*wants the run"):
        trained.find(alone)
    with pytest.raises(UserError, match="holds one model: no phase, no checkpoint"):
        fgvc_jax.load(alone, which="last")


def test_a_copy_with_other_times_is_the_same_run(finished, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    for number, name in enumerate(("retrain", "pairs", "control", "finetune")):
        os.utime(copy / name / "DONE.json", (1e9 + number, 1e9 + number))
    seconds = {json.loads(p.read_text())["finished"] for p in copy.glob("*/DONE.json")}
    if len(seconds) == len(list(copy.glob("*/DONE.json"))):  # else the copy's times break the tie
        assert fgvc_jax.load(copy).phase.name == fgvc_jax.load(finished).phase.name


def test_stopped_and_gone_on(predict, finished, files, monkeypatch, tmp_path):
    _, whole, _ = predict(finished, *files, out="whole.csv")
    check, asked = Stop.check, []

    def stop(self):
        asked.append(1)
        if len(asked) == 2:
            raise Interrupted(2)
        return check(self)

    monkeypatch.setattr(Stop, "check", stop)
    status, text, err = predict(finished, *files, "--batch=5")
    assert (status, text) == (130, None) and "stopped; 10 of 12 rows are in" in err
    partial = tmp_path / "preds.csv.partial"
    with open(partial, "ab") as file:
        file.write(b'{"file": "cut off')
    read, seen = inference.read_image, []
    monkeypatch.setattr(inference, "read_image", lambda path: (seen.append(path), read(path))[1])
    status, text, err = predict(finished, *files, "--batch=5")
    assert status == 0 and "10 of 12 images were classified before" in err
    assert seen == files[10:] and not partial.exists()
    for one, other in zip(rows(text), rows(whole), strict=True):
        assert one["file"] == other["file"] and one["class"] == other["class"]
        # Another batch, another order of the same float32 sums.
        assert abs(float(one["probability"]) - float(other["probability"])) < 3e-6


def test_a_partial_file_of_another_command_is_replaced(predict, finished, files, tmp_path):
    (tmp_path / "preds.csv.partial").write_text('{"fgvc predict": "other"}\n{"file": "x"}\n')
    status, text, err = predict(finished, *files)
    assert status == 0 and "was of another command and is replaced" in err and len(rows(text)) == 12


def test_a_generator_gives_predictions_without_files(finished):
    classifier = fgvc_jax.load(finished)
    images = (np.full((16, 16, 3), value, np.uint8) for value in range(7))
    found = list(predictions(classifier, images, topk=2, batch=3))
    assert len(found) == 7 and all(len(p.labels) == 2 and p.nearest for p in found)
    assert {p.accepted for p in found} <= {True, False}
    bare = next(predictions(fgvc_jax.load(finished, "finetune"), [np.zeros((9, 9, 3), np.uint8)]))
    assert (bare.accepted, bare.unlike, bare.nearest) == (None, None, "")


@pytest.mark.parametrize(
    ("name", "content", "shown"),
    [
        ("config.json", "{", "no valid JSON"),
        ("config.json", '{"format": 2}', "is not of format 1"),
        ("classes.json", None, "does not exist; the folder of a model needs it"),
        ("model.safetensors", "x", "cannot be read"),
        ("support.npz", "x", "cannot be read"),
    ],
)
def test_damaged_folders(alone, tmp_path, name, content, shown):
    shutil.copytree(alone, tmp_path / "m")
    if content is None:
        (tmp_path / "m" / name).unlink()
    else:
        (tmp_path / "m" / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name}.*{shown}"):
        fgvc_jax.load(tmp_path / "m")


def test_arrays_of_another_model(alone, tmp_path):
    shutil.copytree(alone, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["backbone_arguments"]["depth"] = 2
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"arrays of model.safetensors do not fit the model"):
        fgvc_jax.load(tmp_path / "m")


def test_a_finished_run_gets_its_folder_back(finished, photos, tmp_path):
    """As after a crash between the last phase and the folder, or for a run of an older version."""
    again = tmp_path / "again"
    shutil.copytree(finished, again)
    before = load_file(again / "model" / "model.safetensors")
    shutil.rmtree(again / "model")
    run(config(photos), again)
    after = load_file(again / "model" / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, before, after)
