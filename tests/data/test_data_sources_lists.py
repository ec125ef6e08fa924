"""Lists of images in every form they come in, and the line that is wrong."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvc_jax import checks
from fgvc_jax import config as c
from fgvc_jax.data import manifest as m
from fgvc_jax.data import manifest as manifests
from fgvc_jax.data.load import load
from fgvc_jax.data.sources import image_list
from fgvc_jax.errors import UserError
from fgvc_jax.phases import section

IMAGES = [f"photos/{name}.jpg" for name in ("a", "b", "c d", "é", "f")]


@pytest.fixture
def root(tmp_path):
    """Five files; nothing is decoded to make a list of them."""
    (tmp_path / "photos").mkdir()
    for file in IMAGES:
        (tmp_path / file).touch()
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def table(manifest) -> dict[str, list[tuple[str, str]]]:
    """Split -> (file, class name)."""
    return {
        split: [(file, manifest.classes[label]) for file, label in zip(*examples, strict=True)]
        for split, examples in manifest.splits.items()
    }


def refusal(path: Path, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        manifests.check(image_list(path, **kwargs))
    assert str(path) in str(error.value)
    return str(error.value)


SPLITS = ["train", "train", "train", "val", "test"]
NAMES = ["lynx", "bear", "lynx", "bear", "lynx"]
EXPECTED = {
    "train": list(zip(IMAGES[:3], NAMES[:3], strict=True)),
    "val": [(IMAGES[3], "bear")],
    "test": [(IMAGES[4], "lynx")],
}


@pytest.mark.parametrize(
    ("name", "delimiter", "header"),
    [
        ("list.csv", ",", ("path", "label", "split")),
        ("list.csv", ";", ("File Name", "CLASS", "subset")),
        ("list.csv", ",", None),
        ("list.tsv", "\t", ("image", "target", "set")),
        ("list.txt", ",", ("filename", "category", "split")),
        ("list.txt", " ", None),
        ("list.txt", "   ", ("path", "label", "split")),
    ],
)
def test_every_form_with_given_splits(root, name, delimiter, header):
    rows = [*([header] if header else []), *zip(IMAGES, NAMES, SPLITS, strict=True)]
    text = "\n".join(delimiter.join(row) for row in rows)
    if name != "list.txt":
        with open(root / name, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter).writerows(rows)
        text = (root / name).read_text()
    manifest = image_list(write(root / name, text + "\n\n"))
    m.check(manifest)
    assert table(manifest) == EXPECTED
    assert manifest.classes == ("bear", "lynx") and manifest.ids == ()
    assert all(split.labels.dtype == np.int32 for split in manifest.splits.values())


def test_without_splits_it_is_all_one(root):
    text = "\n".join(f"{file} {name}" for file, name in zip(IMAGES, NAMES, strict=True))
    manifest = image_list(write(root / "list.txt", text))
    assert table(manifest) == {"all": list(zip(IMAGES, NAMES, strict=True))}


def test_columns_in_any_order_beside_others_are_told(root, said):
    text = "width,Set,species,Label,ID,FileName\n"
    rows = zip(IMAGES, NAMES, ["Training", "training", "TRAIN", "valid", "testing"], strict=True)
    text += "".join(f'9,{split},"x, y",{name},7,{file}\n' for file, name, split in rows)
    manifest = image_list(write(root / "list.csv", "\ufeff" + text))
    assert table(manifest) == EXPECTED
    assert said == ["list.csv: path from 'FileName', label from 'Label', split from 'Set'"]


def test_one_other_column_is_the_label_as_in_kaggles_dogs(root):
    text = "id,breed\n" + "".join(f"{f},{n}\n" for f, n in zip(IMAGES, NAMES, strict=True))
    assert image_list(write(root / "list.csv", text)).classes == ("bear", "lynx")


def test_absolute_paths_and_another_folder(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists")
    for prefix, images in ((f"{root}/", ""), ("", str(root)), ("./x/../", str(root))):
        text = "".join(f"{prefix}{f}\t{n}\n" for f, n in zip(IMAGES, NAMES, strict=True))
        manifest = image_list(write(elsewhere / "list.tsv", text), images=images)
        files = manifest.splits["all"].files
        assert [root / file for file in files] == [root / file for file in IMAGES]


def test_numeric_labels_are_ids_in_their_order_and_never_labels(root):
    text = "".join(f"{f},{n}\n" for f, n in zip(IMAGES, (4780, 99, 4780, 100, 99), strict=True))
    manifest = image_list(write(root / "list.csv", text))
    assert manifest.classes == manifest.ids == ("99", "100", "4780")
    assert manifest.splits["all"].labels.tolist() == [2, 0, 2, 1, 0]
    same = write(root / "same.csv", text.replace("photos/f.jpg,99", "photos/f.jpg,0099"))
    assert "'0099'" in refusal(same) and "'99'" in refusal(same)


def test_test_rows_without_a_label_are_unlabelled(root, said):
    text = "a.jpg,x,train\nb.jpg,y,train\nc d.jpg,,test\né.jpg,x,test\nf.jpg,,test\n"
    manifest = image_list(write(root / "photos" / "l.csv", text))
    assert manifest.unlabelled == ("c d.jpg", "f.jpg")
    assert table(manifest)["test"] == [("é.jpg", "x")]
    assert said == ["l.csv: 2 test images have no label and are left out of the test"]


# Kaggle


@pytest.fixture
def kaggle(tmp_path):
    """train/ and test/ with the same numbers."""
    for file in ("train/1.jpg", "train/2.png", "train/3.JPG", "test/1.jpg", "test/2.jpg"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    return tmp_path


def test_ids_of_kaggle_are_found_in_train(kaggle):
    manifest = image_list(write(kaggle / "train.csv", "Id,Category\n1,7\n3,7\n2,12\n"))
    assert table(manifest) == {
        "all": [("train/1.jpg", "7"), ("train/3.JPG", "7"), ("train/2.png", "12")]
    }
    assert manifest.classes == ("7", "12")
    rows = "image,label,split\n1.jpg,a,train\n2.png,b,train\n1.jpg,b,test\n2.jpg,a,test\n"
    manifest = image_list(write(kaggle / "train.csv", rows))
    assert table(manifest) == {
        "train": [("train/1.jpg", "a"), ("train/2.png", "b")],
        "test": [("test/1.jpg", "b"), ("test/2.jpg", "a")],
    }


def test_id_that_fits_two_files(kaggle):
    (kaggle / "train" / "1.png").touch()
    text = refusal(write(kaggle / "train.csv", "Id,Category\n2,12\n1,7\n"))
    assert "line 3: '1' may be train/1.jpg or train/1.png" in text


# Messages


def test_missing_files_are_counted_and_ten_are_named(root):
    text = "path,label\n" + "".join(f"no{i}.jpg,x\n" for i in range(12)) + f"{IMAGES[0]},x\n"
    text = refusal(write(root / "list.csv", text))
    assert "12 of 13 images are not in" in text and "no0.jpg (line 2)" in text
    assert text.count("no") - text.count("not") == 10 and "and 2 more" in text
    assert "--config.data.images=DIR" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.jpg,x,train\nb.jpg,y,foo\n", "line 2: split 'foo' is unknown; allowed are train, val"),
        ("path,label,split\na.jpg,x,\n", "line 2: split '' is unknown"),
        ("a.jpg,x\nb.jpg,y\n./a.jpg,x\n", "line 3: 'a.jpg' stands in line 1 already"),
        ("path,label\na.jpg,x\n\nb.jpg,\n", "1 images have no label: line 4"),
        ("a.jpg,x,train\nb.jpg,,val\n", "1 images have no label: line 2"),
        ("a.jpg,lynx,train\nb.jpg,bear,train\nf.jpg,linx,val\n", "line 3: label 'linx' of split"),
        ("a.jpg,lynx,train\nb.jpg,bear,train\nf.jpg,linx,val\n", "the nearest is 'lynx'"),
        ("a.jpg,x,test\nb.jpg,y,test\n", "lists no training image"),
        ("a.jpg,x\nb.jpg,y,z,w\n", "line 2: 4 columns, but 2 in the first line"),
        (",x\na.jpg,y\n", "line 1: the path is empty"),
        ("a.jpg\nb.jpg\n", "line 1: 1 columns, and no header"),
        ("a,b,c,d\n1,2,3,4\n", "line 1: 4 columns, and no header"),
        ("width,height,label\n1,2,x\n", "no column for the path among width, height, label"),
        ("path,width,height\na.jpg,2,3\n", "no column for the label among path, width, height"),
        ('path,label\na.jpg,"x\nb.jpg,y\n', "line 3: unexpected end of data"),
        ("\n \n", "is empty"),
    ],
    ids=lambda text: text.splitlines()[0] if "\n" in text else "",
)
def test_the_line_that_is_wrong_is_named(root, text, expected):
    assert expected in refusal(write(root / "photos" / "list.csv", text))


def test_no_such_list(root):
    assert "does not exist" in refusal(root / "gone.csv")
    assert "is a folder, not a list" in refusal(root / "photos")
    with pytest.raises(UserError, match=r"config.data.images = '/nowhere' is no folder"):
        image_list(write(root / "list.csv", "photos/a.jpg,x\n"), images="/nowhere")


# Through the config


def test_as_a_config_says_it_carved_and_read(root, monkeypatch, said):
    for i in range(40):
        Image.new("RGB", (6, 4), (i, 0, 0)).save(root / f"part{i // 2}_{i % 2}.png")
    text = "".join(f"part{i // 2}_{i % 2}.png,{'xy'[i // 20]}\n" for i in range(40))
    write(root / "list.csv", text)
    monkeypatch.setenv("FGVC_DATA", str(root))
    config = c.base()
    config.data.source, config.data.root = "list", "$FGVC_DATA/list.csv"
    config.data.val_fraction, config.data.test_fraction = 0.2, 0.2
    config.data.group = r"(part\d+)_"
    manifest = load(config.data)
    assert [len(s.files) for s in manifest.splits.values()] == [24, 8, 8]
    sides = [{file.split("_")[0] for file in s.files} for s in manifest.splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 20
    assert manifest.read("part7_1.png")[0, 0].tolist() == [15, 0, 0]
    assert any("40 images are 20 groups by" in line for line in said)


def test_images_folder_of_a_source_that_has_none():
    config = c.base()
    config.finetune, config.phases = section("train"), ("finetune",)
    config.data.images = "x"
    with pytest.raises(UserError, match=r"config.data.images = 'x' is for the sources 'list'"):
        checks.check(config)
