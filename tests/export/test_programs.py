"""ONNX and StableHLO: other programs compute what the model does, for any batch, or nothing is written."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from test_export import RESNET, command, finish

import fgvc_jax
from fgvc_jax.config import base
from fgvc_jax.errors import UserError
from fgvc_jax.export import _model, hub
from fgvc_jax.export.onnx import to_onnx
from fgvc_jax.export.stablehlo import to_stablehlo

# float32 sums in another order, in probabilities and in shares of an embedding's largest value.
TOLERANCE = 1e-5
SMALL = dataclasses.replace(RESNET, backbone_arguments={"depths": (1, 1, 1, 1), "width": 8})
TRIPLET = dataclasses.replace(SMALL, method="triplet")
MMAL = dataclasses.replace(
    SMALL,
    method="mmal",
    backbone_arguments={"depths": (1, 1, 1, 2), "width": 8},
    method_arguments={"windows": "2 of 1x1"},
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of several sizes, one larger than the model's canvas."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(5)
    for i, (width, height) in enumerate([(90, 70), (64, 64), (50, 120), (30, 40), (64, 80)]):
        rough = rng.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(rough).resize((width, height), Image.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    finish(folder / "train", SMALL)
    return folder


def canvases(photos, size):
    """As docs/export.md says it is done, by Pillow alone."""
    pixels, sizes = [], []
    for file in sorted(photos.iterdir()):
        image = Image.open(file).convert("RGB")
        if max(image.size) > size:
            continue  # shrinking by Pillow is not to the bit what the decoder's cache does
        canvas = np.zeros((size, size, 3), np.uint8)
        array = np.asarray(image)
        canvas[: array.shape[0], : array.shape[1]] = array
        pixels.append(canvas)
        sizes.append(array.shape[:2])
    return np.stack(pixels), np.array(sizes, np.int32)


LOAD = """
import sys, numpy as np
from jax import export
folder = sys.argv[1]
model = export.deserialize(bytearray(open(folder + '/model.stablehlo', 'rb').read()))
assert set(model.platforms) == {'cpu', 'cuda', 'tpu'}
given = np.load(folder + '/given.npz')
found = [model.call(given['pixels'][:n], given['sizes'][:n]) for n in (1, 2)]
assert 'fgvc_jax' not in sys.modules
np.savez(folder + '/found.npz', **{f'{k}{len(f[k])}': f[k] for f in found for k in f})
"""


def test_stablehlo_in_another_process_and_batch(run, photos, tmp_path):
    out = tmp_path / "out"
    assert to_stablehlo(run, out, images=[photos]) == run / "train"
    config = json.loads((out / "config.json").read_text())
    assert config["classes"] == list(SMALL.classes) and config["checked"]["images"] == 5
    assert max(config["checked"]["largest_differences"].values()) <= 1e-4
    pixels, sizes = canvases(photos, 64)
    np.savez(out / "given.npz", pixels=pixels, sizes=sizes)
    subprocess.run([sys.executable, "-c", LOAD, out], check=True, env={"PATH": "", "HOME": "/"})
    found = np.load(out / "found.npz")
    arrays = [pixels[i, :h, :w] for i, (h, w) in enumerate(sizes[:2])]
    classifier = fgvc_jax.load(run)
    for n in (1, 2):
        np.testing.assert_allclose(
            found[f"probabilities{n}"], classifier.predict(arrays[:n]), rtol=0, atol=TOLERANCE
        )
        expected = classifier.embed(arrays[:n])
        largest = np.abs(expected).max()
        assert largest > 1e-3
        np.testing.assert_allclose(
            found[f"embedding{n}"], expected, rtol=0, atol=TOLERANCE * largest
        )


def test_a_looping_method_and_one_that_embeds(photos, tmp_path):
    """MMAL-Net's loop goes into StableHLO, and is refused by name for ONNX."""
    finish(tmp_path / "mmal" / "train", MMAL)
    to_stablehlo(tmp_path / "mmal", tmp_path / "out", images=[photos])
    with pytest.raises(UserError, match=r"'mmal' cannot become ONNX: .* loop"):
        to_onnx(tmp_path / "mmal", tmp_path / "no", images=[photos])
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("specification", [SMALL, TRIPLET], ids=["baseline", "triplet"])
def test_onnx_in_onnxruntime(specification, photos, tmp_path):
    pytest.importorskip("jax2onnx")
    ort = pytest.importorskip("onnxruntime")
    finish(tmp_path / "train", specification)
    assert to_onnx(tmp_path, tmp_path / "out", images=[photos]) == tmp_path / "train"
    session = ort.InferenceSession(tmp_path / "out" / "model.onnx")
    (given,) = session.get_inputs()
    assert given.name == "images" and given.shape == ["batch", 64, 64, 3]
    # Of the crop's size as they are: a view of 64 pixels, cut from a shorter side of 73, by Pillow.
    grey = []
    for file in sorted(photos.iterdir())[:2]:
        image = Image.open(file)
        scale = 73 / min(image.size)
        image = image.resize([round(scale * x) for x in image.size], Image.BICUBIC)
        left, top = (round((x - 64) / 2) for x in image.size)
        grey.append(np.asarray(image.crop((left, top, left + 64, top + 64)), np.float32))
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"images": np.stack(grey)}), strict=True))
    classifier = fgvc_jax.load(tmp_path)
    arrays = [np.asarray(Image.open(file)) for file in sorted(photos.iterdir())[:2]]
    # The grey levels of Pillow's crop are rounded; hence far from `TOLERANCE`.
    expected = classifier.embed(arrays)
    assert np.abs(found["embedding"] - expected).max() < 0.05 * np.abs(expected).max()
    if specification is SMALL:
        assert np.abs(found["probabilities"] - classifier.predict(arrays)).max() < 0.02
        np.testing.assert_allclose(found["probabilities"].sum(1), 1, atol=1e-5)
    else:
        assert names == ["embedding"]


@pytest.mark.slow
@pytest.mark.filterwarnings("error:Explicitly requested dtype")  # what a person would read
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("bilinear", {"reduction": 8}),
        ("cmal", {"hidden": 8, "width": 16}),
        ("fbsd", {"hidden": 8, "width": 16}),
    ],
)
def test_other_methods_as_onnx_of_any_batch(method, arguments, photos, tmp_path):
    """`to_onnx` itself runs the file on all photos, in parts of two sizes, and compares to 1e-4."""
    pytest.importorskip("jax2onnx")
    specification = dataclasses.replace(SMALL, method=method, method_arguments=arguments)
    finish(tmp_path / "train", specification)
    to_onnx(tmp_path, tmp_path / "out", images=[photos])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["inputs"] == {"images": ["batch", 64, 64, 3]}
    assert config["outputs"] == ["probabilities", "embedding"]


@pytest.mark.parametrize("to_format", [to_stablehlo, to_onnx])
def test_a_file_that_computes_something_else_is_refused(
    to_format, run, photos, tmp_path, monkeypatch
):
    if to_format is to_onnx:
        pytest.importorskip("jax2onnx")
    right = _model.Model.of_images

    def wrong(self, images):  # by a thousandth
        return {name: x + 1e-3 for name, x in right(self, images).items()}

    monkeypatch.setattr(_model.Model, "of_images", wrong)
    with pytest.raises(UserError, match=r"5 real images its probabilities differ by up to 0\.001"):
        to_format(run, tmp_path / "out", images=[photos])
    assert not (tmp_path / "out").exists()


def test_the_images_it_is_tried_on(run, photos, tmp_path):
    with pytest.raises(UserError, match=r"no manifest.json above .*--images PATH"):
        to_stablehlo(run, tmp_path / "out")
    model = _model.Model(run)
    assert len(_model.real_images(model, [photos], count=3)) == 3
    manifest = {"name": "mine", "root": str(photos), "classes": list(SMALL.classes)}
    splits = {"train": {"0.png": 0}, "val": {"1.png": 1, "2.png": 0}, "test": {"4.png": 1}}
    finish(tmp_path / "files" / "train", SMALL)
    path = tmp_path / "files" / "manifest.json"
    path.write_text(json.dumps(manifest | {"splits": splits}))
    here = _model.Model(tmp_path / "files")
    assert _model.real_images(here) == [str(photos / "4.png")]
    splits.pop("test")
    path.write_text(json.dumps(manifest | {"splits": splits}))
    assert len(_model.real_images(here)) == 2
    path.write_text(json.dumps(manifest | {"splits": splits, "root": "/nowhere"}))
    with pytest.raises(UserError, match=r"none of the run's images is in /nowhere"):
        _model.real_images(here)
    # Of data that are no files.
    config = base()
    config.data.source = "digits"
    splits = {"val": {f"digits/{i:04d}": 0 for i in range(40)}}
    path.write_text(json.dumps(manifest | {"name": "digits", "root": None, "splits": splits}))
    (tmp_path / "files" / "config.json").write_text(config.to_json_best_effort())
    images = _model.real_images(here)
    assert len(images) == 32 and {image.shape for image in images} == {(8, 8, 3)}


def test_pushing(run, photos, tmp_path, monkeypatch, capsys):
    """The calls of the hub's client; the hub itself is not asked."""
    asked = []

    class Api:
        def create_repo(self, name, private, exist_ok):
            asked.append(("create", name, private, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            names = sorted(path.name for path in folder_path.iterdir())
            asked.append(("upload", repo_id, names))
            return type("Commit", (), {"commit_url": "https://hub/me/birds/commit/1"})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    out = tmp_path / "out"
    arguments = ("export", run, f"--out={out}", "--format=stablehlo", "--images", photos)
    status, _, error = command(monkeypatch, capsys, *arguments, "--push=birds")
    assert status == 2 and "USER/NAME" in error and not out.exists() and not asked
    status, said, _ = command(monkeypatch, capsys, *arguments, "--push=me/birds")
    assert status == 0 and "https://hub/me/birds/commit/1" in said
    files = ["config.json", "model.stablehlo"]
    assert asked == [("create", "me/birds", True, True), ("upload", "me/birds", files)]
    command(monkeypatch, capsys, *arguments[:2], f"--out={tmp_path / 'b'}", *arguments[3:])
    assert len(asked) == 2  # only when it is asked for

    def refused(*_, **__):
        response = type("Response", (), {"headers": {}, "request": None, "status_code": 401})()
        raise HfHubHTTPError("401 Unauthorized", response=response)

    monkeypatch.setattr(Api, "create_repo", refused)
    with pytest.raises(UserError, match=r"401 Unauthorized.*hf auth login"):
        hub.push(out, "me/birds")


def test_where_jax2onnx_is_not_installed(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match=r"pip install 'fgvc_jax\[onnx\]'"):
        to_onnx(run, tmp_path / "out")


def test_the_general_forms_are_left_as_they_were():
    """What jax2onnx is shown in their place does not stay."""
    from fgvc_jax.export.onnx import _forms_for_any_platform

    before = jax.lax.platform_dependent
    with pytest.raises(RuntimeError), _forms_for_any_platform():
        assert jax.lax.platform_dependent(1, cpu=None, default=lambda x: x + 1) == 2
        raise RuntimeError
    assert jax.lax.platform_dependent is before
