"""iNaturalist's JSON lists: ids kept, the class table of train, and what is wrong named."""

import json

import pytest

from fgvc_jax.data import manifest as m
from fgvc_jax.data import manifest as manifests
from fgvc_jax.data.sources import inaturalist
from fgvc_jax.errors import UserError

CATEGORIES = [
    {"id": 31, "name": "Corvus corax", "supercategory": "Aves"},
    {"id": 7, "name": "Iris", "supercategory": "Plantae"},
    {"id": 1009, "name": "Iris", "supercategory": "Insecta"},
    {"id": 5, "name": "in nobody's photo", "supercategory": "Aves"},
]


def content(split, *categories, bare=0):
    """A list with an image for each category, and some without an annotation."""
    names = [f"{split}/{i}.jpg" for i in range(len(categories) + bare)]
    return {
        "info": {"year": 2018},
        "categories": CATEGORIES,
        "images": [{"id": 100 + i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": 100 + i, "category_id": c} for i, c in enumerate(categories)
        ],
    }


def put(root, **lists):
    """Writes lists and touches their images."""
    root.mkdir(exist_ok=True)
    for name, data in lists.items():
        (root / f"{name}.json").write_text(json.dumps(data))
        for image in data["images"]:
            path = root / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def refusal(root):
    with pytest.raises(UserError) as error:
        manifests.check(inaturalist(root))
    return str(error.value)


def test_lists_of_a_folder(tmp_path, said):
    test = {k: v for k, v in content("t", bare=2).items() if k in ("info", "images")}
    put(
        tmp_path,
        train2018=content("train_val2018/a", 1009, 31, 7, 31),
        val2018=content("train_val2018/b", 31, bare=1),
        test2018=test,
        categories={"images": []},
    )
    manifest = inaturalist(tmp_path)
    m.check(manifest)
    assert manifest.ids == ("7", "31", "1009")  # by number
    assert manifest.classes == ("Plantae/Iris", "Corvus corax", "Insecta/Iris")
    assert {k: v.labels.tolist() for k, v in manifest.splits.items()} == {
        "train": [2, 1, 0, 1],
        "val": [1],
    }
    assert manifest.splits["train"].files[1] == "train_val2018/a/1.jpg"
    assert manifest.unlabelled == ("t/0.jpg", "t/1.jpg", "train_val2018/b/1.jpg")
    assert "val2018.json: 1 images without labels are left out" in said


def test_lists_by_name_with_images_elsewhere(tmp_path):
    put(tmp_path / "a", train_mini=content("x", 31, 7), train=content("x", 31, 7, 7))
    put(tmp_path / "b", val=content("y", 7))
    (tmp_path / "b" / "y").rename(tmp_path / "a" / "y")
    lists = f"{tmp_path}/a/train_mini.json, {tmp_path}/b/val.json"
    manifest = inaturalist(lists, images=tmp_path / "a")
    assert manifest.splits["train"].labels.tolist() == [1, 0]
    assert manifest.splits["val"].labels.tolist() == [0]
    assert "which is the train split" in refusal(tmp_path / "a")


def test_the_same_category_twice_is_one_label(tmp_path):
    """Lists of boxes have an annotation for each."""
    data = content("x", 31, 7)
    data["annotations"] *= 2
    put(tmp_path, train=data)
    assert inaturalist(tmp_path).splits["train"].labels.tolist() == [1, 0]


def annotation(**changes):
    def change(lists):
        lists["val"]["annotations"].append({"image_id": 100, "category_id": 31} | changes)

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (annotation(image_id=7), "val.json: an annotation names image 7, which is not there"),
        (
            annotation(category_id=7),
            "image 100 (b/0.jpg) has annotations of several categories, 31 and 7",
        ),
        (
            lambda lists: lists["train"]["annotations"].pop(0),
            "categories 31 have images in another",
        ),
        (
            lambda lists: lists["val"].update(categories=[{"id": 7, "name": "x"}]),
            "category 7 has an",
        ),
        (
            lambda lists: lists["train"].pop("images"),
            "train.json is no such list: KeyError('images')",
        ),
        (lambda lists: lists.pop("train"), "No train list in"),
        (lambda lists: lists["train"].update(categories=[]) or lists.pop("val"), "no name among"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, expected):
    lists = {"train": content("a", 31, 7), "val": content("b", 31)}
    put(tmp_path, **lists)
    for name in lists:
        (tmp_path / f"{name}.json").unlink()
    change(lists)
    for name, data in lists.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    assert expected in refusal(tmp_path)


def test_missing_images_and_files_that_are_no_lists(tmp_path):
    put(tmp_path, train=content("a", 31, 7), val=content("b", 31))
    (tmp_path / "a" / "1.jpg").unlink()
    text = refusal(tmp_path)
    assert f"1 of 2 images that {tmp_path}/train.json lists are not in {tmp_path}: a/1.jpg" in text
    (tmp_path / "train.json").write_text("{")
    assert "train.json is not JSON" in refusal(tmp_path)
    assert "nowhere.json does not say train, val or test" in refusal(tmp_path / "nowhere.json")
    assert "train9.json does not exist" in refusal(tmp_path / "train9.json")
