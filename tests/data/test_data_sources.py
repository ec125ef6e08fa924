"""Digits, folders in every layout, and the messages for what is wrong with them."""

import numpy as np
import pytest
from PIL import Image

from fgvc_jax.data import manifest as m
from fgvc_jax.data import manifest as manifests
from fgvc_jax.data import sources
from fgvc_jax.data.split import carve
from fgvc_jax.errors import UserError


def put(root, *paths, size=(6, 4)):
    for path in paths:
        path = root / path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "red").save(path)


def fill(root, counts):
    for name, n in counts.items():
        put(root, *[f"{name}/{i:02d}.png" for i in range(n)])


def files(manifest):
    return {k: list(v.files) for k, v in manifest.splits.items()}


def labels(manifest):
    return {k: v.labels.tolist() for k, v in manifest.splits.items()}


def folder(root, **fractions):
    return carve(sources.folder(root), **fractions)


def digits(**fractions):
    return carve(sources.digits(), **fractions)


def refusal(root, **kwargs):
    with pytest.raises(UserError) as error:
        manifests.check(folder(root, **kwargs))
    return str(error.value)


# Digits


def test_digits_are_scikit_learns_with_every_class_in_every_split():
    from sklearn.datasets import load_digits

    data = load_digits()
    manifest = digits(val_fraction=0.15, test_fraction=0.2, seed=1)
    m.check(manifest)
    assert manifest.classes == tuple("0123456789")
    sizes = {k: len(v.files) for k, v in manifest.splits.items()}
    assert sum(sizes.values()) == 1797
    # shares of the whole, off by at most half an image a class
    assert abs(sizes["val"] - 0.15 * 1797) <= 5 and abs(sizes["test"] - 0.2 * 1797) <= 5
    for split in manifest.splits.values():
        assert set(split.labels) == set(range(10)) and split.labels.dtype == np.int32
        for file, label in list(zip(*split, strict=True))[::50]:
            i = int(file[-4:])
            image = manifest.read(file)
            assert file == f"digits/{i:04d}" and label == data.target[i]
            assert image.dtype == np.uint8 and image.shape == (8, 8, 3)
            np.testing.assert_allclose(image[..., 1], data.images[i] / 16 * 255, atol=0.5)
    again = digits(val_fraction=0.15, test_fraction=0.2, seed=1)
    assert files(again) == files(manifest)
    assert files(digits(val_fraction=0.15, test_fraction=0.2, seed=2)) != files(manifest)


# Layouts


def test_three_given_splits_share_the_class_table_of_train(tmp_path, said):
    fill(tmp_path / "train", {"b": 2, "a": 1, "c d": 1})
    fill(tmp_path / "val", {"c d": 1})
    fill(tmp_path / "test", {"c d": 1, "b": 2})
    manifest = folder(tmp_path)
    m.check(manifest)
    assert manifest.classes == ("a", "b", "c d")
    assert labels(manifest) == {"train": [0, 1, 1, 2], "val": [2], "test": [1, 1, 2]}
    assert files(manifest)["test"] == ["test/b/00.png", "test/b/01.png", "test/c d/00.png"]
    assert manifest.read("val/c d/00.png").shape == (4, 6, 3)
    assert any("val: 1 images of 1 classes (2 of 3 have none)" in line for line in said)


@pytest.mark.parametrize(
    "spelling", ["valid", "Validation", "val_images", "VAL", "dev", "valid set"]
)
def test_usual_spellings(tmp_path, spelling):
    fill(tmp_path / "Training", {"a": 1, "b": 1})
    fill(tmp_path / spelling, {"a": 1})
    assert labels(folder(tmp_path)) == {"train": [0, 1], "val": [0]}


def test_validation_is_carved_from_train_and_test_is_left_alone(tmp_path, said):
    fill(tmp_path / "train", {"a": 20, "b": 10, "one": 1})
    fill(tmp_path / "test", {"a": 3})
    manifest = folder(tmp_path, val_fraction=0.2)
    m.check(manifest)
    assert {k: np.bincount(v).tolist() for k, v in labels(manifest).items()} == {
        "train": [16, 8, 1],
        "val": [4, 2],
        "test": [3],
    }
    text = "\n".join(said)
    assert "val carved: 20% of every class, seed 0" in text
    assert "1 of 3 classes are too small to give a val image and stay in train: one" in text
    assert files(manifest) == files(folder(tmp_path, val_fraction=0.2))
    assert files(manifest) != files(folder(tmp_path, val_fraction=0.2, seed=1))


def test_class_folders_alone_are_split_three_ways(tmp_path, said):
    fill(tmp_path, {"a": 20, "b": 10})
    manifest = folder(tmp_path, val_fraction=0.1, test_fraction=0.2)
    m.check(manifest)
    assert {k: np.bincount(v).tolist() for k, v in labels(manifest).items()} == {
        "train": [14, 7],
        "val": [2, 1],
        "test": [4, 2],
    }
    assert sorted(f for split in files(manifest).values() for f in split) == sorted(
        [f"a/{i:02d}.png" for i in range(20)] + [f"b/{i:02d}.png" for i in range(10)]
    )
    assert list(folder(tmp_path, val_fraction=0, test_fraction=0).splits) == ["train"]
    assert any("test carved: 20%" in line for line in said)


def test_which_files_count(tmp_path, said):
    put(tmp_path, "a/x.JPG", "a/deep/er/y.Tiff", "b/z.webp", "b/.hidden.png", ".git/q.png")
    put(tmp_path, "loose.png")
    for name in ("a/notes.txt", "a/deep/Thumbs.db", "b/list.txt", "b/README", "top.csv"):
        (tmp_path / name).write_text("x")
    manifest = folder(tmp_path, val_fraction=0, test_fraction=0)
    assert files(manifest) == {"train": ["a/deep/er/y.Tiff", "a/x.JPG", "b/z.webp"]}
    assert any("1 images outside class folders ignored" in line for line in said)
    (line,) = [line for line in said if "no images" in line]
    assert "4 files that are no images ignored" in line and "2 .txt" in line


def test_flat_test_folder_is_unlabelled_and_no_test_split_is_made(tmp_path, said):
    fill(tmp_path / "train", {"a": 20, "b": 10})
    put(tmp_path, "test_images/10.png", "test_images/2.png")
    (tmp_path / "test_images" / "readme.txt").touch()
    manifest = folder(tmp_path)
    assert manifest.unlabelled == ("test_images/10.png", "test_images/2.png")
    assert set(manifest.splits) == {"train", "val"}
    (line,) = [line for line in said if "predict" in line]
    assert "test_images/ has 2 images without labels" in line
    assert f"`fgvc predict RUN {tmp_path}/test_images`" in line
    assert not any("ignored: they have no class" in line for line in said)


@pytest.mark.parametrize(
    ("folders", "classes", "ids"),
    [
        # In the order of the folders, not of the names.
        (("02_ant", "10_aye_aye", "9_bee"), ("ant", "aye_aye", "bee"), ("02", "10", "9")),
        (("1_cat", "2_cat"), ("1_cat", "2_cat"), ("1", "2")),  # two classes of one name
        (("1_cat", "1_dog"), ("1_cat", "1_dog"), ()),  # then 1 is no id
        (("1_cat", "dog"), ("1_cat", "dog"), ()),
        (("1_", "2_dog"), ("1_", "2_dog"), ()),
        (("10", "9"), ("10", "9"), ()),
    ],
)
def test_ids_before_class_names(tmp_path, folders, classes, ids):
    fill(tmp_path / "train", dict.fromkeys(folders, 1))
    fill(tmp_path / "val", {folders[1]: 1})
    manifest = folder(tmp_path)
    m.check(manifest)
    assert (manifest.classes, manifest.ids) == (classes, ids)
    assert labels(manifest) == {"train": list(range(len(folders))), "val": [1]}
    assert files(manifest)["val"] == [f"val/{folders[1]}/00.png"]


def test_order_of_files_is_that_of_the_parts_of_their_paths(tmp_path):
    """As of pathlib, so that a split that was carved before stays the same."""
    put(tmp_path, "a b/1.png", "a/b!/1.png", "a/b/1.png", "a/b.png", "a/b0.png", "a-b/1.png")
    manifest = folder(tmp_path, val_fraction=0, test_fraction=0)
    found = [tmp_path / file for file in files(manifest)["train"]]
    assert sorted(found) == found and len(found) == 6


def test_links_are_followed_and_dead_ones_are_not_passed_over(tmp_path):
    fill(tmp_path / "elsewhere", {"x": 2})
    fill(tmp_path / "photos", {"a": 1})
    (tmp_path / "photos" / "b").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "photos" / "a" / "dead.jpg").symlink_to(tmp_path / "nowhere.jpg")
    manifest = folder(tmp_path / "photos", val_fraction=0, test_fraction=0)
    assert files(manifest)["train"] == ["a/00.png", "a/dead.jpg", "b/00.png", "b/01.png"]
    with pytest.raises(UserError, match=r"a/dead.jpg: cannot be read as an image: no such file"):
        manifest.read("a/dead.jpg")


# Messages


def test_missing_root_shows_the_layout(tmp_path):
    text = refusal(tmp_path / "nowhere")
    assert "nowhere does not exist" in text and "ROOT/train/<class>/*.jpg" in text
    put(tmp_path, "x.png")
    assert "is a file, not a directory" in refusal(tmp_path / "x.png")


def test_root_without_class_folders(tmp_path):
    put(tmp_path, "x.png", "y.png")
    text = refusal(tmp_path)
    assert "No class folders" in text and "2 images lie directly in it" in text
    assert "ROOT/<class>/*.jpg" in text


def test_class_folder_without_images(tmp_path):
    fill(tmp_path / "train", {"a": 1, "b": 1})
    (tmp_path / "train" / "hollow").mkdir()
    (tmp_path / "train" / "hollow" / "x.txt").write_text("no image")
    text = refusal(tmp_path)
    assert "without images" in text and "hollow" in text and ".jpeg" in text


def test_one_class_only(tmp_path):
    fill(tmp_path, {"lonely": 3})
    found = folder(tmp_path, val_fraction=0.34, test_fraction=0.34)
    with pytest.raises(UserError, match=r"1 class \(lonely\); classification needs at least two"):
        manifests.check_classification(found)


@pytest.mark.parametrize("split", ["val", "test"])
def test_class_that_train_lacks_is_named_with_the_nearest(tmp_path, split):
    fill(tmp_path / "train", {"Granny-Smith": 2, "Pink-Lady": 2})
    fill(tmp_path / split, {"granny_smith": 1, "Pink-Lady": 1})
    (tmp_path / split / "empty-and-harmless").mkdir()
    text = refusal(tmp_path)
    assert "'granny_smith'" in text and f"/{split}" in text
    assert "nearest training class is 'Granny-Smith'" in text


def test_ambiguous_or_incomplete_split_folders(tmp_path):
    fill(tmp_path / "val", {"a": 1, "b": 1})
    assert "has val but no train folder" in refusal(tmp_path)
    fill(tmp_path / "train", {"a": 1, "b": 1})
    fill(tmp_path / "valid", {"a": 1, "b": 1})
    assert "val and valid" in refusal(tmp_path) or "valid and val" in refusal(tmp_path)


@pytest.mark.parametrize("paths", [["val/1.png"], ["test/a/notes.txt"]])
def test_given_split_without_class_folders(tmp_path, paths):
    fill(tmp_path / "train", {"a": 2, "b": 2})
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    assert "No class folders with images in" in refusal(tmp_path)


def test_no_class_large_enough_for_validation(tmp_path):
    fill(tmp_path / "train", {"a": 3, "b": 2})
    text = refusal(tmp_path, val_fraction=0.1)
    assert "no class is large enough to give a val image" in text and "val_fraction=0.1" in text
