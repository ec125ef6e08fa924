"""`fgvc explain` on a run: pictures and numbers for each image, and what it says where it cannot."""

import csv
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

import fgvc_jax
from fgvc_jax import cli
from fgvc_jax.images.batch import plain_views
from fgvc_jax.phases import complete
from fgvc_jax.run import run


def trained(config, folder):
    """A finished run in the folder."""
    run(config, folder)
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    made = tiny.pipeline()
    made.phases = ("finetune",)
    return trained(made, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Folders called like classes, and like none; one file is damaged."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for folder in ("3", "7", "unknown"):
        (root / folder).mkdir()
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(root / folder / "a.png")
    (root / "7" / "broken.png").write_bytes(b"no picture")
    return root


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fgvc", "explain", *map(str, arguments)])
        return (cli.main(), *capsys.readouterr())

    return run


def test_a_picture_and_the_numbers_of_every_image(call, workdir, photos, tmp_path):
    status, out, err = call(
        workdir, photos, f"--out={tmp_path}", "--classes=predicted,second,true", "--kind=hirescam"
    )
    assert status == 3 and "3 images drawn" in out and "broken.png" in err
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(f"{n}_a.{x}" for n in (1, 2, 4) for x in ("png", "npz"))
    known, unknown = (Image.open(tmp_path / f"{n}_a.png").size for n in (1, 4))
    assert known[0] - unknown[0] == 266 and known[1] == unknown[1]  # the true class is not known
    found = np.load(tmp_path / "1_a.npz")
    best = np.argsort(-found["run1_probabilities"])[:2]
    np.testing.assert_array_equal(found["run1_classes"], [*best, 3])
    assert np.load(tmp_path / "4_a.npz")["run1_classes"][2] == -1
    for kind in ("gradcam", "hirescam", "eigencam"):
        maps = found[f"run1_{kind}"]
        assert maps.ndim == 3 and len(maps) == 3
        assert maps.min() >= 0 and maps.max() <= 1


def test_only_the_cams_that_are_wanted(call, workdir, photos, tmp_path):
    assert call(workdir, photos / "3", f"--out={tmp_path / 'one'}", "--cam=hirescam")[0] == 0
    assert call(workdir, photos / "3", f"--out={tmp_path / 'all'}", "--kind=hirescam")[0] == 0
    one, every = (np.load(tmp_path / name / "1_a.npz") for name in ("one", "all"))
    assert "run1_gradcam" not in one and "run1_eigencam" not in one
    # Another program: the last bits of float32.
    np.testing.assert_allclose(one["run1_hirescam"], every["run1_hirescam"], atol=1e-5)
    pictures = [np.asarray(Image.open(tmp_path / name / "1_a.png")) for name in ("one", "all")]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 1


def test_the_share_of_heat_in_boxes(call, workdir, photos, tmp_path):
    boxes = tmp_path / "given.csv"
    boxes.write_text("file,x,y,width,height\n3/a.png,0,0,40,30\n7/a.png,0,0,20,30\n")
    flags = f"--out={tmp_path}", "--kind=occlusion", "--stride=2", f"--boxes={boxes}"
    status, out, _ = call(workdir, photos / "3", photos / "7" / "a.png", *flags)
    assert status == 0 and "in the boxes, which cover 76.6 % of the image (2 images)" in out
    whole, half = csv.DictReader((tmp_path / "boxes.csv").open())
    assert float(whole["inside"]) == pytest.approx(1) == float(whole["chance"])
    # 30 x 40 becomes 16 x 21, of which the columns from 2 to 18 are seen: the box ends at 20 * 21 / 40 - 2.
    assert float(half["chance"]) == pytest.approx(8.5 / 16)
    heat = np.load(tmp_path / "2_a.npz")["run1_occlusion"][0]  # 8 x 8 on 16 pixels
    enlarged = np.asarray(Image.fromarray(heat).resize((16, 16), Image.BILINEAR), float)
    expected = (enlarged[:, :8].sum() + enlarged[:, 8].sum() / 2) / enlarged.sum()
    assert float(half["inside"]) == pytest.approx(expected, abs=1e-5)  # Pillow's float32
    boxes.write_text("file,x,y,width,height\nother.png,0,0,40,30\n")
    status, _, err = call(workdir, photos / "3", *flags)
    assert status == 2 and "names none of the images" in err


def test_nothing_to_explain(call, workdir, tmp_path):
    status, _, err = call(workdir, f"--out={tmp_path}")
    assert status == 2 and "name images or folders, or --pairs" in err


def test_two_runs_stand_below_each_other(call, workdir, photos, tmp_path):
    status, _, _ = call(
        workdir, photos / "3", f"--out={tmp_path}", f"--run2={workdir / 'finetune'}"
    )
    assert status == 0
    found = np.load(tmp_path / "1_a.npz")
    np.testing.assert_array_equal(found["run1_gradcam"], found["run2_gradcam"])
    width, height = Image.open(tmp_path / "1_a.png").size
    assert (width, height) == (3 * 266 + 10, 2 * 310)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A ViT's run, of two steps."""
    made = tiny.pipeline("vit_tiny_patch16_224", depth=2, width=16, heads=2)
    made.image.size = made.image.resize = 32
    made.finetune.length, made.phases = "2 steps", ("finetune",)
    return trained(made, tmp_path_factory.mktemp("vit"))


def test_attention_rollout_is_one_map_of_a_vit(call, vit, workdir, photos, tmp_path):
    flags = f"--out={tmp_path}", "--kind=rollout"
    status, _, _ = call(vit, photos / "3", *flags)
    assert status == 0
    maps = np.load(tmp_path / "1_a.npz")["run1_rollout"]
    assert maps.shape == (3, 2, 2) and np.ptp(maps) == 1 and not np.ptp(maps, axis=0).any()
    assert Image.open(tmp_path / "1_a.png").size[0] == 2 * 266 + 10  # the photo and one map
    status, _, err = call(workdir, photos / "3", *flags)
    assert status == 2 and "resnet18 has none" in err


def test_what_the_method_has_picked_out(call, workdir, photos, tmp_path):
    made = tiny.pipeline()
    made.finetune.method, made.phases = "fbsd", ("finetune",)
    made.finetune.arguments = {"hidden": 4, "width": 8, "strips": (2, 1, 1)}
    made = complete(made)
    made.finetune.length = "2 steps"
    other = trained(made, tmp_path / "run")
    status, _, err = call(other, photos / "3", f"--out={tmp_path}", "--evidence")
    assert status == 0 and "picks out nothing" not in err
    found = np.load(tmp_path / "1_a.npz")
    assert found["run1_evidence strips of layer2"].shape == (2, 1)
    assert Image.open(tmp_path / "1_a.png").size[0] == 6 * 266 + 10  # the photo, two maps, strips
    status, _, err = call(workdir, photos / "3", f"--out={tmp_path}", "--evidence")
    assert status == 0 and "baseline, picks out nothing of its own" in err


def test_why_without_files_of_training_images(call, workdir, photos, tmp_path):
    status, _, err = call(workdir, photos / "3", f"--out={tmp_path}", "--why")
    assert status == 0
    assert "training photos are left out: the images of digits are no files." in err
    assert Image.open(tmp_path / "1_a.png").size == (3 * 266 + 10, 310)


def test_covers_and_scores(call, workdir, photos, tmp_path):
    flags = f"--out={tmp_path}", "--kind=occlusion", "--patch=8", "--stride=4"
    status, out, _ = call(workdir, photos / "3", *flags, "--occlude=mean", "--scores", "--steps=4")
    assert status == 0 and "deletion" in out
    found = {key[5:]: x for key, x in np.load(tmp_path / "1_a.npz").items()}
    assert found["drop"].shape == found["occlusion"].shape == (3, 4, 4)
    drop = np.maximum(found["drop"], 0)
    low, high = (f(drop, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    np.testing.assert_allclose(found["occlusion"], (drop - low) / (high - low), atol=1e-6)
    assert (
        Image.open(tmp_path / "1_a.png").size[0] == 5 * 266 + 10
    )  # the photo, two maps, two after

    # What is said about the covered image is what the classifier says of it.
    top, left, bottom, right = found["occluded_covered"]
    assert 0 <= top <= bottom < 16 and 0 <= left <= right < 16
    classifier = fgvc_jax.load(workdir)
    view = classifier.specification.view
    mean = np.round(255 * np.array(view.mean)).astype(np.uint8)
    photo = np.asarray(Image.open(photos / "3" / "a.png"))
    size = jnp.array([[photo.shape[:2]]])
    normal = plain_views(photo[None, None], size, view, jnp.float32)[0]
    seen = np.array(normal) * view.std + view.mean
    seen[top : bottom + 1, left : right + 1] = mean / 255
    seen = np.clip(np.round(255 * seen), 0, 255).astype(np.uint8)
    best = found["classes"][0]
    expected = classifier.predict([seen])[0, best]  # 16 x 16: cropping leaves it as it is
    np.testing.assert_allclose(found["occluded_probability"], expected, atol=2e-3)  # 8 bits

    (row,) = csv.DictReader((tmp_path / "scores.csv").open())
    assert row["class"] == classifier.classes[best]
    for name in ("deletion", "insertion", "random_deletion", "random_insertion"):
        curve = found[name]
        assert curve.shape == (5,)
        np.testing.assert_allclose(float(row[name]), np.trapezoid(curve, dx=0.25), atol=1e-6)
    # Both ends are the same images for every order.
    whole = found["probabilities"][best]
    for prefix in ("", "random_"):
        np.testing.assert_allclose(found[f"{prefix}deletion"][0], whole, atol=1e-6)
        np.testing.assert_allclose(found[f"{prefix}insertion"][-1], whole, atol=1e-6)
    assert found["deletion"][-1] == found["random_deletion"][-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--classes=predicted,thrid",), "Known: predicted"),
        (("--kind=gradcan",), "did you mean 'gradcam'"),
        (("--cam=hirescam,eigencan",), "did you mean 'eigencam'"),
        (("--cam=hirescam", "--kind=gradcam"), "is not among --cam=hirescam"),
        (("--boxes=none.csv",), "none.csv: No such file"),
        (("--pairs=2",), "has trained no comparator"),
        (("--batch=0",), "at least 1"),
        (("--occlude=blck",), "did you mean 'black'"),
        (("--kind=occlusion", "--patch=17"), "must be 1 to 16, the image's side"),
        (("--scores", "--steps=0"), "at least 1"),
    ],
)
def test_wrong_flags_are_named(call, workdir, photos, tmp_path, flags, message):
    status, _, err = call(workdir, photos, f"--out={tmp_path}", *flags)
    assert status == 2 and message in err and not list(tmp_path.iterdir())
