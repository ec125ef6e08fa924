"""A finished run as a Python object: `fgvc_jax.load(RUN)`, in another process than the one that trained."""

import collections
import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import tiny
from PIL import Image

import fgvc_jax
from fgvc_jax import inference, trained
from fgvc_jax.errors import UserError
from fgvc_jax.export.timm import to_timm
from fgvc_jax.run import run
from fgvc_jax.train.checkpoint import Checkpoints

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise photos of three classes; those in test are of all shapes, one larger than the canvas."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    shapes = [(20, 24), (24, 20), (60, 30), (17, 31)]
    for label, name in enumerate(CLASSES):
        for number in range(10):
            split, shape = ("test", shapes[number - 6]) if number > 5 else ("train", (20, 24))
            path = root / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (*shape, 3)) // 2 + 40 * label
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """The workdir of a fine-tune and its control, embedded and evaluated."""
    config = tiny.pipeline("vit_tiny_patch16_224", depth=1, width=16, heads=1)
    config.data.source, config.data.root, config.data.canvas = "folder", str(photos), 40
    config.data.val_fraction = 0.2
    config.finetune.length = config.control.length = "2 steps"
    config.finetune.batch = config.control.batch = 4
    config.phases = ("finetune", "control", "embed", "evaluate")
    workdir = tmp_path_factory.mktemp("run")
    run(config, workdir)
    return workdir


FRESH = """
import sys
import numpy as np
import fgvc_jax
run, out, *files = sys.argv[1:]
classifier = fgvc_jax.load(run, "finetune")
np.savez(
    out,
    probabilities=classifier.predict(files, batch=5),
    embeddings=classifier.embed(files),
    classes=classifier.classes,
    best=classifier.metrics["best"]["top1"],
)
"""


@pytest.fixture(scope="module")
def fresh(finished, tmp_path_factory):
    """What a new process gets for the test images, in the order of the manifest."""
    manifest = json.loads((finished / "manifest.json").read_text())
    files = [os.path.join(manifest["root"], file) for file in manifest["splits"]["test"]]
    out = tmp_path_factory.mktemp("fresh") / "out.npz"
    command = [sys.executable, "-c", FRESH, str(finished), str(out), *files]
    subprocess.run(command, check=True, timeout=120)
    return files, np.load(out)


def test_a_fresh_process_predicts_what_the_evaluation_phase_scored(finished, fresh):
    files, found = fresh
    assert len(files) == 12 and tuple(found["classes"]) == CLASSES
    scores = np.load(finished / "evaluate" / "finetune" / "test" / "scores.npy").astype(np.float64)
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert found["probabilities"].dtype == np.float32 and found["probabilities"].shape == (12, 3)
    # One program compiled for other batches: the last bits of float32 sums.
    np.testing.assert_allclose(found["probabilities"], expected, rtol=0, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 1e-4  # different images, different answers
    done = json.loads((finished / "finetune" / "DONE.json").read_text())
    assert found["best"] == done["validation"]["best"]["top1"]
    assert found["embeddings"].shape == (12, 16) and found["embeddings"].dtype == np.float32


def test_embeddings_are_those_of_the_embedding_phase(finished):
    manifest = json.loads((finished / "manifest.json").read_text())
    files = [os.path.join(manifest["root"], file) for file in manifest["splits"]["train"]]
    saved = np.load(finished / "embed" / "train_embedding.npy")
    found = fgvc_jax.load(finished, "finetune").embed(files)
    np.testing.assert_allclose(found, saved, rtol=0, atol=1e-5)  # sums of 16 numbers around 1


def test_arrays_and_files_in_any_batch_size_agree(finished, fresh):
    files, found = fresh
    classifier = fgvc_jax.load(str(finished), phase="finetune")
    arrays = [np.asarray(Image.open(file)) for file in files]
    mixed = [a if i % 2 else f for i, (a, f) in enumerate(zip(arrays, files, strict=True))]
    for images, batch in ((arrays, 64), (mixed, 1), (files[:1], 3)):
        probabilities = classifier.predict(images, batch=batch)
        np.testing.assert_allclose(
            probabilities, found["probabilities"][: len(images)], rtol=0, atol=1e-6
        )


def test_without_a_name_it_is_the_classifier_best_on_validation(finished):
    best = {}
    for name in ("finetune", "control"):
        done = json.loads((finished / name / "DONE.json").read_text())
        best[name] = done["validation"]["best"]["top1"]
    classifier = fgvc_jax.load(finished)
    # Of equals the latest; they were trained in this order.
    expected = max(reversed(best), key=best.get)
    assert classifier.phase == finished / expected
    for name in best:
        assert fgvc_jax.load(finished / name).phase == finished / name


@pytest.fixture(scope="module")
def refitted(photos, tmp_path_factory):
    """The workdir of a fine-tune and its control, both trained again on train + val."""
    config = tiny.pipeline("vit_tiny_patch16_224", depth=1, width=16, heads=1)
    config.data.source, config.data.root, config.data.canvas = "folder", str(photos), 40
    config.data.val_fraction, config.protocol = 0.2, "refit"
    config.finetune.length = config.control.length = "2 steps"
    config.finetune.batch = config.control.batch = 4
    config.phases = ("finetune", "control")
    workdir = tmp_path_factory.mktemp("refitted")
    run(config, workdir)
    return workdir


@pytest.mark.parametrize("best", ["finetune", "control"])
def test_after_a_refit_it_is_the_refitted_model_of_the_phase_best_on_validation(
    refitted, tmp_path, best, caplog
):
    """Whichever finished last, in the run or in its refit."""
    workdir = tmp_path / "run"
    shutil.copytree(refitted, workdir, ignore=shutil.ignore_patterns("model"))
    for name in ("finetune", "control"):
        path = workdir / name / "DONE.json"
        done = json.loads(path.read_text())
        done["validation"]["best"]["selection"] = 0.9 if name == best else 0.8
        path.write_text(json.dumps(done))
    other = {"finetune": "control", "control": "finetune"}[best]
    os.utime(workdir / "refit" / best / "DONE.json", (1e9, 1e9))  # the other one finished later
    image = [np.arange(20 * 24 * 3, dtype=np.uint8).reshape(20, 24, 3)]
    again = fgvc_jax.load(workdir)
    assert again.phase == workdir / "refit" / best
    last = fgvc_jax.load(workdir / "refit" / best, which="last").predict(image)
    np.testing.assert_array_equal(again.predict(image), last)
    assert not np.array_equal(last, fgvc_jax.load(workdir, best).predict(image))  # other images
    assert fgvc_jax.load(workdir / "refit").phase == again.phase
    assert trained.find(workdir)[:2] == (again.phase, "last")
    # By name it is the phase that was named.
    assert fgvc_jax.load(workdir, other).phase == workdir / other
    assert fgvc_jax.load(workdir, f"refit/{other}").phase == workdir / "refit" / other
    assert not caplog.records

    (workdir / "refit" / best / "DONE.json").unlink()
    assert fgvc_jax.load(workdir).phase == workdir / best
    assert f"refit/{best} is not finished; loaded is {workdir / best}" in caplog.text
    with pytest.raises(UserError, match=f"refit/{best} is not finished.*load {workdir}, the run"):
        fgvc_jax.load(workdir / "refit")
    alone = tmp_path / "elsewhere" / "refit"
    shutil.copytree(workdir / "refit", alone)
    with pytest.raises(
        UserError, match=r"no validation metrics to choose a phase by.*elsewhere/refit/"
    ):
        fgvc_jax.load(alone)


def test_a_workdir_that_is_called_refit(refitted, tmp_path):
    shutil.copytree(refitted, tmp_path / "refit", ignore=shutil.ignore_patterns("refit"))
    assert fgvc_jax.load(tmp_path / "refit").phase.parent == tmp_path / "refit"


def test_a_model_is_read_once(finished, monkeypatch, tmp_path):
    reads = collections.Counter()
    load = trained.load_specification

    def count(path):
        reads[path.parent.name] += 1
        return load(path)

    restored = []
    restore = Checkpoints.restore_weights
    monkeypatch.setattr(trained, "load_specification", count)
    monkeypatch.setattr("fgvc_jax.model.load_specification", count)
    monkeypatch.setattr(
        Checkpoints, "restore_weights", lambda *a: (restored.append(1), restore(*a))[1]
    )
    monkeypatch.setattr("fgvc_jax.export.timm._try", lambda *_: None)  # which reads it again
    fgvc_jax.load(finished)
    assert reads == {"finetune": 1, "control": 1}
    assert not restored  # the model folder has the arrays
    to_timm(finished, tmp_path / "out")
    assert reads == {"finetune": 2, "control": 2} and len(restored) == 1


def test_stream_answers_every_image_in_order(finished, fresh, tmp_path):
    files, found = fresh
    (tmp_path / "bad.png").write_bytes(b"")
    images = [*files[:2], tmp_path / "bad.png", np.zeros((4, 4), np.uint8), *files[2:]]
    answers = list(fgvc_jax.load(finished, "finetune").stream(iter(images), batch=3))
    assert all(a.image is image for a, image in zip(answers, images, strict=True))
    assert [i for i, answer in enumerate(answers) if answer.error] == [2, 3]
    assert answers[2].error == f"{tmp_path}/bad.png: cannot be read as an image: the file is empty"
    assert answers[3].error.startswith("image 3 is uint8 (4, 4)")
    assert answers[2].probabilities is None is answers[3].probabilities
    good = np.stack([answer.probabilities for answer in answers if answer.error is None])
    assert good.dtype == np.float32
    np.testing.assert_allclose(good, found["probabilities"], rtol=0, atol=1e-6)
    assert list(fgvc_jax.load(finished).stream([])) == []


def test_stream_holds_a_few_batches_however_many_images(finished):
    """Images come from a generator, which is never more than three batches ahead of the answers."""
    given, ahead = 0, []

    def images():
        nonlocal given
        for _ in range(40):
            given += 1
            yield np.zeros((8, 8, 3), np.uint8)

    stream = fgvc_jax.load(finished).stream(images(), batch=2)
    for taken, _ in enumerate(stream, 1):
        ahead.append(given - taken)
    assert given == 40 and max(ahead) <= 3 * 2
    given = 0
    stream = fgvc_jax.load(finished).stream(images(), batch=2)
    next(stream)
    stream.close()  # no thread is left behind
    assert given <= 6


def test_images_are_decoded_while_the_device_works(finished, monkeypatch):
    """The device is not ready with the first batch of two until the third one has been decoded."""
    classifier = fgvc_jax.load(finished)
    step, decoded = classifier._step, threading.Semaphore(0)

    class Slow:
        def __init__(self, array):
            self.array = array

        def __array__(self, *_, **__):
            for _ in range(6 if not waited else 0):
                assert decoded.acquire(timeout=20), "nothing is decoded meanwhile"
            waited.append(1)
            return np.asarray(self.array)

    def decode(path):
        decoded.release()
        return np.zeros((8, 8, 3), np.uint8)

    waited = []
    monkeypatch.setattr(inference, "read_image", decode)
    monkeypatch.setattr(classifier, "_step", lambda *a: {k: Slow(v) for k, v in step(*a).items()})
    assert classifier.predict(["x"] * 12, batch=2).shape == (12, 3) and len(waited) == 6


def test_last_checkpoint(finished):
    assert fgvc_jax.load(finished, "finetune", "last").classes == CLASSES


def test_unknown_checkpoint(finished):
    with pytest.raises(UserError, match="'latest' is unknown; did you mean 'last'"):
        fgvc_jax.load(finished, "finetune", "latest")


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        (np.zeros((8, 8, 3), np.float32), r"image 1 is float32 \(8, 8, 3\)"),
        (np.zeros((8, 8), np.uint8), r"image 1 is uint8 \(8, 8\)"),
        (np.zeros((8, 8, 4), np.uint8), r"image 1 is uint8 \(8, 8, 4\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"image 1 is uint8 \(2, 8, 8, 3\)"),
    ],
)
def test_wrong_arrays_are_named(finished, image, shown):
    good = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(UserError, match=shown + r".*uint8 \[height, width, 3\], RGB"):
        fgvc_jax.load(finished).predict([good, image])


def test_other_mistakes(finished, tmp_path):
    classifier = fgvc_jax.load(finished)
    with pytest.raises(UserError, match="no images were given"):
        classifier.predict([])
    with pytest.raises(UserError, match=r"gone.png: cannot be read as an image: no such file"):
        classifier.predict([tmp_path / "gone.png"])
    specification = json.loads((finished / "finetune" / "model.json").read_text())
    specification |= {"method": "pairs", "method_arguments": {}}
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "model.json").write_text(json.dumps(specification))
    with pytest.raises(UserError, match="'pairs' model, which does not give classes"):
        fgvc_jax.load(tmp_path, "pairs")
    with pytest.raises(UserError, match=r"no finished classifier in .*--workdir"):
        fgvc_jax.load(tmp_path)
    with pytest.raises(UserError, match=r"model\.json does not exist"):
        fgvc_jax.load(finished, "contrl")


def test_one_path_in_place_of_a_list(finished, fresh):
    """A lone string would be read letter by letter."""
    classifier = fgvc_jax.load(finished)
    with pytest.raises(UserError, match="a list of images"):
        classifier.predict(fresh[0][0])
