"""fgvc demo: the server answers over HTTP and in a browser, on this machine alone."""

import json
import socket
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from browser import needs_browser, visit
from PIL import Image

import fgvc_jax
from fgvc_jax import cli, demo
from fgvc_jax.errors import UserError
from fgvc_jax.images.view import View
from fgvc_jax.model import Specification

sys.path.append(str(Path(__file__).parent / "export"))
from test_export import finish

VIEW = View(32, 36, (0.5,) * 3, (0.25,) * 3)
SMALL = {"depths": (1, 1, 1, 1), "width": 8}
MODEL = Specification(
    "resnet18", "baseline", ("ant", "bee", "cat"), VIEW, 64, backbone_arguments=SMALL
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a photo of each class to train on."""
    folder = tmp_path_factory.mktemp("run")
    finish(folder / "train", MODEL)
    rng = np.random.default_rng(0)
    for name in MODEL.classes:
        pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    manifest = {"name": "mine", "root": str(folder), "classes": MODEL.classes}
    manifest["splits"] = {"train": {f"{c}.png": i for i, c in enumerate(MODEL.classes)}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def served(run):
    """(the demo, its address)."""
    pytest.importorskip("gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = demo.Demo(fgvc_jax.load(run))
    blocks = demo.serve(made, port, wait=False)
    yield made, f"http://127.0.0.1:{port}/"
    blocks.close()


def test_its_answer(served, run):
    """The classifier's own probabilities, and pictures of the photo and of both nearest photos."""
    pytest.importorskip("gradio_client")
    from gradio_client import Client, handle_file

    file = str(run / "new.png")
    pixels = np.random.default_rng(1).integers(0, 256, (50, 60, 3), np.uint8)
    Image.fromarray(pixels).save(file)
    client = Client(served[1], verbose=False)
    label, picture = client.predict(handle_file(file), api_name="/answer")
    expected = fgvc_jax.load(run).predict([file])[0]
    given = {x["label"]: x["confidence"] for x in label["confidences"]}
    # Both in float32, in batches of other sizes.
    assert given == pytest.approx(
        dict(zip(MODEL.classes, map(float, expected), strict=True)), abs=1e-5
    )
    assert label["label"] == MODEL.classes[int(expected.argmax())]
    shown = picture if isinstance(picture, str) else picture["path"]
    alone, (width, height) = served[0].answer(file)[1].size, Image.open(shown).size
    assert (width, height) == alone and width > 600 and height > 600  # three rows of three


def test_a_damaged_photo_and_one_from_elsewhere(served, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"bad\.png"):
        served[0].answer(str(tmp_path / "bad.png"))


def test_it_is_for_this_machine_alone(served):
    """Not on another address of this machine, and no page of it may ask another server."""
    port = int(served[1].rstrip("/").rpartition(":")[2])
    with (
        socket.socket() as other
    ):  # 127.0.0.2 is this machine too, but not the address that it is bound to
        assert other.connect_ex(("127.0.0.2", port)) != 0
    with urllib.request.urlopen(served[1]) as page:
        assert page.headers["content-security-policy"].startswith("default-src 'self'")


@needs_browser
def test_in_a_browser(served, run):
    def act(page):
        page.locator("input[type=file]").first.set_input_files(str(run / "bee.png"))
        page.get_by_text("%").first.wait_for(timeout=60_000)
        page.wait_for_function("document.querySelectorAll('img').length >= 2", timeout=60_000)
        return page.locator("body").inner_text()

    # A label would lie on the titles in the picture.
    parts = [part["props"] for part in demo.page(served[0]).get_config_file()["components"]]
    (picture,) = (part for part in parts if part.get("interactive") is False)
    assert not picture["show_label"] and "share" not in picture["buttons"]
    for width in (390, 1400):
        seen = visit(served[1], width, act=act)
        best = max(served[0].answer(str(run / "bee.png"))[0].items(), key=lambda item: item[1])
        assert best[0] in seen.result and f"{100 * best[1]:.0f}%" in seen.result
        elsewhere = [url for url in seen.requests if not url.startswith(served[1])]
        assert not elsewhere and not seen.broken_images and seen.scroll_width <= width


def test_photos_that_are_gone_and_a_package_that_is_not_there(run, tmp_path, monkeypatch, capsys):
    finish(tmp_path / "train", MODEL)
    made = demo.Demo(fgvc_jax.load(tmp_path))
    assert "no manifest.json" in made.missing
    made.answer(str(run / "ant.png"))  # without the training photos
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["fgvc", "demo", str(tmp_path)])
    assert cli.main() == 2 and "pip install 'fgvc_jax[demo]'" in capsys.readouterr().err
