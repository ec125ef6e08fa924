"""`fgvc audit` on a run, and its page in a browser: choices, what is kept of them, the patch."""

import csv
import json
import shutil

import numpy as np
import pytest
import tiny
from browser import WIDTHS, needs_browser, visit
from command import call
from PIL import Image

from fgvc_jax.data import load, patch
from fgvc_jax.run import run

COLOURS = {"ant": (200, 40, 40), "bee, wild": (40, 200, 40), 'cat "x"': (40, 40, 200)}
WRONG = "train/ant/8.png"  # a photo of a bee


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes that their colour tells, one image in the wrong folder, one class of one image."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for number in range(9):
            path = root / "train" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            own = COLOURS["bee, wild"] if str(path.relative_to(root)) == WRONG else colour
            pixels = np.clip(rng.normal(own, 25, (32, 32, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    (root / "train" / "dog").mkdir()
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(root / "train/dog/0.png")
    return root


@pytest.fixture(scope="module")
def config(photos):
    made = tiny.pipeline()
    made.data.source, made.data.root, made.data.canvas = "folder", str(photos), 40
    made.data.val_fraction, made.finetune.batch = 0.0, 8
    made.image.size = made.image.resize = 32
    made.finetune.length, made.phases = "6 steps", ("finetune",)
    made.finetune.validation.every = "100 %"
    return made


@pytest.fixture(scope="module")
def audited(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(config, folder)
    assert call("audit", folder) == 0
    return folder / "audit"


def test_every_training_image_is_ranked_and_the_wrong_one_first(audited):
    rows = list(csv.DictReader((audited / "audit.csv").open()))
    train = json.loads((audited.parent / "manifest.json").read_text())["splits"]["train"]
    assert sorted(row["file"] for row in rows) == sorted(train)
    assert [int(row["rank"]) for row in rows] == list(range(1, 29))
    first, last = rows[0], rows[-1]
    assert (first["file"], first["label"], first["suggestion"]) == (WRONG, "ant", "bee, wild")
    assert first["suspect"] == "1"
    judged = [float(row["score"]) for row in rows[:-1]]
    assert judged == sorted(judged, reverse=True)
    assert (last["label"], last["score"], last["suggestion"]) == ("dog", "", "")


def test_the_patch_that_is_written_changes_nothing_before_somebody_has_looked(config, audited):
    text = (audited / "labels_patch.csv").read_text()
    data = config.data.copy_and_resolve_references()
    data.labels_patch = str(audited / "labels_patch.csv")
    with pytest.raises(load.UserError, match="changes no label: all its lines are comments"):
        load.read(data)
    (audited / "some.csv").write_text(text.replace(f'# "{WRONG}"', f'"{WRONG}"'))
    (change,) = patch.read(audited / "some.csv")
    assert change[1:] == (WRONG, "ant", "bee, wild")


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_whole(audited, width):
    assert visit(audited / "audit.html", width).faults() == []


@needs_browser
def test_a_patch_of_nothing_cannot_be_downloaded_and_looks_so(audited):
    def look(tab):
        seen = "getComputedStyle(document.getElementById('download')).opacity"
        before = tab.is_disabled("#download"), float(tab.evaluate(seen))
        tab.click("article >> nth=0 >> text=Relabel to")
        return before, (tab.is_disabled("#download"), float(tab.evaluate(seen)))

    before, after = visit(audited / "audit.html", act=look).result
    assert before[0] and before[1] < 0.6 and after == (False, 1.0)


@needs_browser
def test_choices_are_kept_and_become_a_patch_that_training_reads(config, audited, tmp_path):
    def choose(tab):
        tab.click("article >> nth=0 >> text=Relabel to")
        tab.keyboard.press("j")  # from the first card to the second
        tab.keyboard.press("3")  # drop it; the third is next
        tab.keyboard.press("1")
        tab.keyboard.press("2")
        tab.keyboard.press("k")  # from the fifth to the fourth
        tab.keyboard.press("0")  # takes that back
        tab.reload()
        with tab.expect_download() as found:
            tab.click("#download")
        found.value.save_as(tmp_path / found.value.suggested_filename)
        return tab.inner_text("#told")

    told = visit(audited / "audit.html", act=choose).result
    assert told == "1 to relabel, 1 to drop, 1 kept, 24 left"
    rows = list(csv.DictReader((audited / "audit.csv").open()))
    changes = patch.read(tmp_path / "labels_patch.csv")
    assert [tuple(change[1:]) for change in changes] == [
        (WRONG, "ant", "bee, wild"),
        (rows[1]["file"], rows[1]["label"], "drop"),
    ]
    data = config.data.copy_and_resolve_references()
    before = load.read(data).splits["train"]
    data.labels_patch = str(tmp_path / "labels_patch.csv")
    after = load.read(data)
    assert len(after.splits["train"].files) == len(before.files) - 1
    labels = dict(zip(*after.splits["train"], strict=True))
    assert after.classes[labels[WRONG]] == "bee, wild"


def test_what_cannot_be_audited_is_told(audited, tmp_path, capsys):
    assert call("audit", tmp_path) == 2
    assert "no finished classifier" in capsys.readouterr().err
    assert call("audit", audited.parent, "--show=0") == 2
    assert "--show = 0; it must be at least 1" in capsys.readouterr().err
    moved = tmp_path / "run"
    shutil.copytree(audited.parent, moved)
    (moved / "manifest.json").unlink()
    assert call("audit", moved) == 2
    assert "no manifest.json above" in capsys.readouterr().err


def test_an_edited_patch_is_kept(audited, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(audited.parent, folder)
    patch_file = folder / "audit" / "labels_patch.csv"
    edited = patch_file.read_text().replace('# "', '"', 1)
    assert edited != patch_file.read_text()
    patch_file.write_text(edited)
    assert call("audit", folder, "--show=3") == 0
    assert patch_file.read_text() == edited
    assert len((folder / "audit" / "suggestions.csv").read_text().splitlines()) == 4 + 3
