"""`fgvc evolution`: the page in a browser, two runs side by side, and the GIF."""

import csv
import json

import numpy as np
import pytest
from browser import WIDTHS, needs_browser, visit
from command import call
from PIL import Image


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two runs, of three saved points and of two, with class names that are no HTML."""
    root, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 8)
    for name, steps in (("all", (0, 10, 20)), ("hard", (0, 20))):
        folder = root / name / "train" / "embeddings"
        folder.mkdir(parents=True)
        for step in steps:
            x = rng.normal(size=(24, 6)) + step * np.eye(6)[labels]
            arrays = {"test_embedding": x.astype(np.float32), "test_label": labels}
            np.savez(folder / f"step_{step:06d}.npz", **arrays)
        classes = ["ant", "</script><b>bee", 'cat "x"']
        manifest = {"classes": classes, "splits": {"train": {"a": 0, "b": 1}}}
        (root / name / "manifest.json").write_text(json.dumps(manifest))
        (root / name / "train" / "DONE.json").write_text('{"steps": 20, "images": 40}')
    assert call("evolution", root / "all", f"--run2={root / 'hard'}") == 0
    return root / "all" / "evolution"


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_whole(drawn, width):
    assert visit(drawn / "evolution.html", width, dark=width == 390).faults() == []


@needs_browser
def test_one_run_fits_a_desk(drawn, tmp_path):
    """Slider, dots and both charts in one window of 1400 x 900, and the slider stays when a phone scrolls."""
    assert call("evolution", drawn.parent, f"--out={tmp_path}") == 0
    bottoms = "[...document.querySelectorAll('canvas')].map(x => x.getBoundingClientRect().bottom)"
    assert (
        visit(tmp_path / "evolution.html", act=lambda tab: max(tab.evaluate(bottoms))).result <= 900
    )

    def scroll(tab):
        tab.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        assert tab.evaluate("window.scrollY") > 100
        return tab.locator("#at").bounding_box()["y"]

    assert 0 <= visit(tmp_path / "evolution.html", 390, act=scroll).result < 100


@needs_browser
def test_the_slider_moves_both_runs(drawn):
    rows = list(csv.DictReader((drawn / "cosines.csv").open()))
    assert [(row["run"], row["step"]) for row in rows] == [
        ("all", "0"), ("all", "10"), ("all", "20"), ("hard", "0"), ("hard", "20")
    ]  # fmt: skip

    def slide(tab):
        found = [tab.inner_text("#runs")]
        pictures = "[...document.querySelectorAll('canvas')].map(x => x.toDataURL())"
        before = tab.evaluate(pictures)
        tab.focus("#at")
        tab.keyboard.press("End")
        after = tab.evaluate(pictures)
        return [*found, tab.inner_text("#runs")], [
            a != b for a, b in zip(before, after, strict=True)
        ]

    (first, last), changed = visit(drawn / "evolution.html", act=slide).result
    assert first.count("epoch 0, step 0") == 2 and last.count("epoch 20, step 20") == 2
    assert f"one class {float(rows[2]['same_class']):.3f}" in last
    assert f"one class {float(rows[4]['same_class']):.3f}" in last
    assert "</script><b>bee" in first and all(changed) and len(changed) == 6


def test_the_gif_has_a_picture_for_every_point(drawn):
    with Image.open(drawn / "evolution.gif") as gif:
        assert gif.n_frames == 3 and gif.size == (2 * 496 + 16, 536)
        frames = []
        for number in range(3):
            gif.seek(number)
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
    assert np.abs(frames[0] - frames[1])[50:].any() and np.abs(frames[1] - frames[2])[50:].any()
