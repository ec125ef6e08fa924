"""CUB, Cars and Aircraft as their archives unpack."""

import os

import archives
import numpy as np
import pytest
from PIL import Image

from fgvc_jax.data import manifest as m
from fgvc_jax.data.sources import original
from fgvc_jax.errors import UserError

pytest.importorskip("scipy", reason="makes the lists of Cars")


def found(manifest):
    """{file below the images' folder: (split, label)}."""
    return {
        file: (split, label)
        for split, (files, labels) in manifest.splits.items()
        for file, label in zip(files, labels.tolist(), strict=True)
    }


@pytest.mark.parametrize("name", ["cub", "cars", "aircraft"])
def test_official_splits_classes_and_ids(tmp_path, name, said):
    expected = getattr(archives, name)(tmp_path)
    manifest = original(name, tmp_path)
    m.check(manifest)
    got = found(manifest)
    assert len(got) == len(expected)
    for file, answer in expected.items():
        (where,) = [f for f in got if f.endswith(file)]
        assert got[where] == answer and (tmp_path / where).is_file()
    first = next(iter(manifest.splits["test"].files))
    image = np.asarray(Image.open(tmp_path / first).convert("RGB"))
    banner = 20 if name == "aircraft" else 0
    np.testing.assert_array_equal(manifest.read(first), image[: len(image) - banner])
    assert len(manifest.read(first)) == len(image) - banner > 0
    assert len(said) == 1 and "the official list has" in said[0]  # these are few


def test_ids_and_names(tmp_path):
    archives.cub(tmp_path / "cub")
    archives.cars(tmp_path / "cars")
    cub = original("cub", tmp_path / "cub")
    assert cub.ids == ("1", "2", "3", "4") and cub.classes[0] == "Black footed Albatross"
    cars = original("cars", tmp_path / "cars")
    assert cars.ids[0] == "1" and "Ram C/V Cargo Van Minivan 2012" in cars.classes


def test_official_counts_are_recognised(tmp_path, said):
    """5,994 and 5,794 images, as in the published lists, of the fewest bytes that are files."""
    top = tmp_path / "CUB_200_2011"
    archives.cub(tmp_path)
    (top / "images.txt").unlink()
    rows = [(i + 1, f"{i % 4 + 1:03d}.x/{i}.jpg", i % 4 + 1, int(i < 5994)) for i in range(11788)]
    for folder in range(4):
        (top / "images" / f"{folder + 1:03d}.x").mkdir()
    for _, file, _, _ in rows:
        os.close(os.open(top / "images" / file, os.O_CREAT))
    archives.write(top / "images.txt", [f"{r[0]} {r[1]}" for r in rows])
    archives.write(top / "image_class_labels.txt", [f"{r[0]} {r[2]}" for r in rows])
    archives.write(top / "train_test_split.txt", [f"{r[0]} {r[3]}" for r in rows])
    archives.write(top / "bounding_boxes.txt", [f"{r[0]} 1 1 1 1" for r in rows])
    archives.write(top / "parts" / "part_locs.txt", [])
    original("cub", tmp_path)
    assert said == ["cub: 5,994 train / 5,794 test: the official list"]


def test_partial_copies(tmp_path):
    expected = archives.cub(tmp_path)
    gone = next(iter(expected))
    (tmp_path / "CUB_200_2011" / "images" / gone).unlink()
    with pytest.raises(UserError, match=rf"1 of the {len(expected)} images .* absent: {gone}"):
        original("cub", tmp_path)
    with pytest.raises(UserError, match=r"nowhere does not exist(.|\n)*train_test_split.txt"):
        original("cub", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no classes.txt in .*empty"):
        original("cub", tmp_path / "empty")
