"""The competition's layout: ids such as 04780 with 100 classes, a flat test folder, perhaps labels.txt."""

import numpy as np
import pytest

from fgvc_jax import config as c
from fgvc_jax.data import manifest as m
from fgvc_jax.data.load import load
from fgvc_jax.data.sources import competition
from fgvc_jax.errors import UserError

FOLDERS = ["04615_Lynx lynx", "04780_Ursus arctos", "04858_Vulpes vulpes"]


@pytest.fixture
def root(tmp_path):
    for folder in FOLDERS:
        (tmp_path / "train" / folder).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "train" / folder / f"{i}.jpg").touch()
    (tmp_path / "test").mkdir()
    for i in range(4):
        (tmp_path / "test" / f"{i:04d}.jpg").touch()
    return tmp_path


def refusal(root):
    with pytest.raises(UserError) as error:
        competition(root)
    return str(error.value)


def test_ids_are_kept_with_their_zeros_and_never_become_labels(root):
    config = c.base()
    config.data.source, config.data.root = "competition", str(root)
    manifest = load(config.data)
    assert manifest.classes == ("Lynx lynx", "Ursus arctos", "Vulpes vulpes")
    assert manifest.ids == ("04615", "04780", "04858")
    assert {k: np.bincount(s.labels).tolist() for k, s in manifest.splits.items()} == {
        "train": [9, 9, 9],
        "val": [1, 1, 1],
    }
    assert manifest.unlabelled == tuple(f"test/{i:04d}.jpg" for i in range(4))


def test_labels_txt_gives_the_order(root):
    (root / "labels.txt").write_text("1 4615\n2 4780\n\n0 4858\n")
    manifest = competition(root)
    m.check(manifest)
    assert manifest.ids == ("04858", "04615", "04780")
    assert manifest.classes == ("Vulpes vulpes", "Lynx lynx", "Ursus arctos")
    for file, label in zip(*manifest.splits["train"], strict=True):
        assert file.startswith(f"train/{manifest.ids[label]}_{manifest.classes[label]}/")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 4615\n1 4780\n", "gives 2, from 0 to 1"),
        ("1 4615\n2 4780\n3 4858\n", "gives 3, from 1 to 3"),
        ("0 4615\n1 4781\n", "line 2: no folder in train has the id 4781"),
        ("0 4615\n1 4615\n", "line 2: '1 4615': index or id stands there before"),
        ("0 4615\n0 4780\n", "line 2: '0 4780': index or id stands there before"),
        ("0 Lynx\n", "line 1: '0 Lynx' is not 'index classID'"),
        ("", "gives 0, from none to none"),
    ],
)
def test_labels_txt_that_does_not_fit(root, text, expected):
    (root / "labels.txt").write_text(text)
    found = refusal(root)
    assert expected in found and f"{root}/labels.txt" in found


def test_folders_without_ids(root, tmp_path):
    (root / "train" / FOLDERS[0]).rename(root / "train" / "Lynx lynx")
    text = refusal(root)
    assert "not every class folder has an id" in text and "<classID>_<className>" in text
    assert "config.data.source = 'folder'" in text
    assert "does not exist" in refusal(root / "nowhere")


def test_ids_that_differ_in_zeros_only(root):
    (root / "train" / FOLDERS[0]).rename(root / "train" / "4780_Lynx lynx")
    competition(root)  # different as they are written
    (root / "labels.txt").write_text("0 4780\n")
    assert "same id but for leading zeros" in refusal(root)
