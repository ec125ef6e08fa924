"""The nearest training photos of two classes, in a run with a comparator, against plain loops."""

import csv
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

import fgvc_jax
from fgvc_jax import cli, model
from fgvc_jax import mesh as meshes
from fgvc_jax.errors import UserError
from fgvc_jax.explain import pairs, why
from fgvc_jax.explain.heat import PLAIN, explain
from fgvc_jax.images.batch import plain_views
from fgvc_jax.run import run
from fgvc_jax.train import tree

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Noise photos of three classes; one of them in test lies in train too."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        for number in range(7):
            path = root / ("test" if number > 5 else "train") / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (32, 32, 3)) // 2 + 40 * label
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    config = tiny.pipeline("vit_tiny_patch16_224", depth=1, width=16, heads=1)
    config.image.size = config.image.resize = 32
    config.data.source, config.data.root, config.data.canvas = "folder", str(photos), 40
    config.data.val_fraction = 0.2
    config.finetune.length = config.pairs.length = "2 steps"
    config.finetune.batch = config.pairs.batch = 4
    config.phases = ("finetune", "embed", "mine", "pairs")
    folder = tmp_path_factory.mktemp("run")
    run(config, folder)
    return folder


@pytest.fixture(scope="module")
def found(finished, photos):
    """(classifier, images, what is found): three photos of the test, one of training, one broken."""
    classifier = fgvc_jax.load(finished)
    manifest = json.loads((finished / "manifest.json").read_text())
    of_training = str(photos / next(iter(manifest["splits"]["train"])))
    broken = finished / "broken.png"
    broken.write_bytes(b"no picture")
    images = [str(photos / "test" / name / "6.png") for name in CLASSES]
    images = [images[0], str(broken), *images[1:], of_training]
    heats = explain(classifier, images, batch=2)
    comparator = why.comparator(classifier.phase)
    return classifier, images, list(
        why.neighbours(why.Gallery(classifier), comparator, heats, PLAIN, batch=2)
    )  # fmt: skip


def test_the_photo_of_the_largest_cosine(finished, found):
    classifier, images, answers = found
    manifest = json.loads((finished / "manifest.json").read_text())
    train = manifest["splits"]["train"]
    files = [f"{manifest['root']}/{file}" for file in train]
    embedded = dict(zip(files, classifier.embed(files).astype(float), strict=True))
    assert [heat.image for heat, _ in answers] == images
    assert answers[1][0].error and answers[1][1] == []
    for heat, near in (answers[i] for i in (0, 2, 3, 4)):
        own = classifier.embed([heat.image])[0].astype(float)
        for label, neighbour in zip(heat.classes[:2], near, strict=True):
            cosines = {}
            for file, other in embedded.items():
                if train[file.removeprefix(f"{manifest['root']}/")] == label and file != heat.image:
                    cosines[file] = own @ other / np.linalg.norm(own) / np.linalg.norm(other)
            best = max(cosines, key=cosines.get)
            assert neighbour.heat.image == best
            # Embedded in other batches: the last bits of float32.
            assert neighbour.cosine == pytest.approx(cosines[best], abs=1e-6)


def test_its_heat_maps_are_of_the_images_classes(found):
    classifier, _, answers = found
    for heat, near in (answers[i] for i in (0, 2, 3, 4)):
        for neighbour in near:
            assert neighbour.heat.classes.tolist() == [*heat.classes[:2], -1]
    image = answers[0][1][0].heat.image
    (own,) = explain(classifier, [image], batch=1)
    first, second, _ = own.classes
    third = ({0, 1, 2} - {first, second}).pop()
    (same,) = explain(classifier, [image], batch=1, classes=[(first, second)])
    (other,) = explain(classifier, [image], batch=1, classes=[(third, first)])
    assert other.classes.tolist() == [third, first, -1]
    for name, maps in own.maps.items():  # one program
        np.testing.assert_array_equal(same.maps[name][:2], maps[:2])
        np.testing.assert_array_equal(other.maps[name][1], maps[0])
    assert not np.array_equal(other.maps["gradcam"][0], own.maps["gradcam"][0])


def test_the_comparator_says_what_its_phase_says_of_the_pair(finished, found):
    _, _, answers = found
    specification, module, weights = model.trained(finished / "pairs", "best", meshes.make())
    static, _, _ = tree.split(module)
    heat, near = answers[0]
    pixels = np.stack([np.asarray(Image.open(x)) for x in (heat.image, near[1].heat.image)])
    sizes = jnp.full((1, 2, 2), 32)
    pair = plain_views(pixels[None], sizes, specification.view, jnp.float32)
    logit = jax.jit(lambda w, x: tree.merge(static, **w).predict(x)["scores"])(weights, pair)[0]
    assert near[1].same == pytest.approx(1 / (1 + np.exp(-float(logit))), abs=1e-5)


def test_the_command_draws_them(finished, photos, tmp_path, monkeypatch, capsys):
    image = photos / "test" / "bee" / "6.png"

    def call(workdir):
        arguments = ["fgvc", "explain", str(workdir), str(image), f"--out={tmp_path}", "--why"]
        monkeypatch.setattr(sys, "argv", arguments)
        return cli.main(), capsys.readouterr().err

    assert call(finished)[0] == 0
    numbers = np.load(tmp_path / "1_6.npz")
    assert Image.open(tmp_path / "1_6.png").size == (3 * 266 + 10, 3 * 310)
    assert [str(x).split("/")[-2] for x in numbers["run1_nearest"]] == [
        CLASSES[label] for label in numbers["run1_classes"][:2]
    ]
    assert ((numbers["run1_nearest_same"] > 0) & (numbers["run1_nearest_same"] < 1)).all()

    moved = tmp_path / "run"
    shutil.copytree(finished, moved)
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["root"] = str(tmp_path / "gone")
    (moved / "manifest.json").write_text(json.dumps(manifest))
    status, said = call(moved)
    assert status == 0 and f"none of the training images is in {tmp_path / 'gone'} any more" in said
    assert Image.open(tmp_path / "1_6.png").size == (3 * 266 + 10, 310)
    (moved / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest\.json above"):
        why.Gallery(fgvc_jax.load(moved))
    shutil.rmtree(moved / "pairs")
    assert why.comparator(moved / "finetune") is None


def test_the_hardest_pairs_and_what_speaks_for_one_class(finished, tmp_path, monkeypatch, capsys):
    """The most similar of different classes, as mined; the comparator's word and Grad-CAM once more."""
    argv = ["fgvc", "explain", str(finished), "--pairs=2", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", argv)
    assert cli.main() == 0 and "2 pairs in" in capsys.readouterr().out
    assert Image.open(tmp_path / "pairs.png").size == (6 * 266 + 10, 2 * 310)
    rows = list(csv.DictReader((tmp_path / "pairs.csv").open()))
    manifest = json.loads((finished / "manifest.json").read_text())
    train, val = (manifest["splits"][split] for split in ("train", "val"))
    mined = np.load(finished / "mine" / "val_pairs.npz")
    hard = mined["similarity"][mined["label"] == 0].max()
    assert float(rows[0]["similarity"]) == pytest.approx(hard)
    for row in rows:
        assert CLASSES[val[row["query"]]] == row["class_of_query"] != row["class_of_neighbour"]
        assert CLASSES[train[row["neighbour"]]] == row["class_of_neighbour"]
    comparator = why.comparator(finished / "pairs")
    root = manifest["root"]
    queries, neighbours = ([f"{root}/{row[k]}" for row in rows] for k in ("query", "neighbour"))
    found = list(pairs.hardest(comparator.model, "gradcam", 2, batch=3))
    expected = comparator.same(queries, neighbours)
    np.testing.assert_allclose([one.same for one in found], expected, atol=1e-5)  # float32

    # Grad-CAM of the logit by its definition.
    one, (_, module, weights) = found[0], model.trained(finished / "pairs", "best", meshes.make())
    view = comparator.model.specification.view
    photos = np.stack([np.asarray(Image.open(x)) for x in (queries[0], neighbours[0])])
    images = plain_views(photos[None], jnp.full((1, 2, 2), 32), view, jnp.float32)
    module = tree.merge(tree.split(module)[0], **weights)
    tapped = {}

    def logit(delta):
        def edit(name, x):
            if name != module.cam_tap:
                return x
            tapped[name] = x
            return x + delta

        return module.predict(images, edit)["scores"][0]

    logit(0.0)
    gradient = jax.grad(logit)(jnp.zeros_like(tapped.pop(module.cam_tap)))
    logit(0.0)
    heat = (gradient.mean((1, 2), keepdims=True) * tapped[module.cam_tap]).sum(-1)
    for image in range(2):
        for sign, maps in ((1, one.maps[image, 0]), (-1, one.maps[image, 1])):
            plain = np.maximum(sign * np.asarray(heat[image]), 0)
            expected = (plain - plain.min()) / max(np.ptp(plain), 1e-30)
            np.testing.assert_allclose(maps, expected, atol=1e-4)  # float32, another program
