"""Every named set, from a small archive in its true layout, prepared in one process and read in another."""

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import archives
import numpy as np
import pytest
from PIL import Image

from fgvc_jax import cli
from fgvc_jax import config as c
from fgvc_jax.data import cache, doctor
from fgvc_jax.data import manifest as manifests
from fgvc_jax.data.archives.table import Expected
from fgvc_jax.data.load import load
from fgvc_jax.data.tfds import SETS, prepare, read
from fgvc_jax.errors import UserError

# Of the small archives; 'flowers' has all its classes, since their names are not in it.
SMALL = {
    "aircraft": Expected(
        {"label": 3, "family": 2, "manufacturer": 2}, {"train": 3, "val": 3, "test": 3}
    ),
    "cars": Expected({"label": 4}, {"train": 8, "test": 4}, (6, 6)),
    "cub": Expected({"label": 4}, {"train": 8, "test": 4}, (6, 6)),
    "dogs": Expected({"label": 3}, {"train": 6, "test": 3}),
    "dtd": Expected({"label": 2}, {"train": 4, "val": 4, "test": 4}),
    "flowers": Expected({"label": 102}, {"train": 102, "val": 102, "test": 102}),
    "nabirds": Expected({"label": 3}, {"train": 6, "test": 3}),
}
# How each set's archives cut up what they unpack to; what is not named here is given as a file.
CUTS = {
    "aircraft": {"fgvc-aircraft-2013b.tar.gz": ["fgvc-aircraft-2013b"]},
    "cars": {
        "cars_test.tgz": ["cars_test"],
        "car_devkit.tgz": ["devkit"],
        "cars_train.tgz": ["cars_train"],
    },
    "cub": {"CUB_200_2011.tgz": ["attributes.txt", "CUB_200_2011"]},
    "dogs": {
        "lists.tar": ["train_list.mat", "test_list.mat"],
        "images.tar": ["Images"],
        "annotation.tar": ["Annotation"],
    },
    "dtd": {"dtd-r1.0.1.tar.gz": ["dtd"]},
    "flowers": {"102flowers.tgz": ["jpg"]},
    "nabirds": {"nabirds.tar.gz": ["nabirds"]},
}

PREPARE = """
import json, sys
from pathlib import Path
from fgvc_jax.data.tfds import prepare
from fgvc_jax.data.archives.table import Expected
for name, paths, (classes, splits, retrieval) in json.load(sys.stdin):
    expected = Expected(classes, splits, tuple(retrieval))
    prepare.prepare(name, [Path(p) for p in paths], Path(sys.argv[1]), expected=expected)
assert "tensorflow" not in sys.modules
"""
READ = """
import hashlib, json, sys
from pathlib import Path
from fgvc_jax.data.tfds import SETS, read
found = {}
for name in SETS:
    m = read.prepared(Path(sys.argv[1]) / name, cache=Path(sys.argv[2]))
    found[name] = {
        "classes": m.classes, "ids": m.ids, "root": m.root,
        "long_side": max(max(m.size_of(f)) for pair in m.splits.values() for f in pair.files),
        "splits": {
            split: [
                (file, int(label), hashlib.sha256(m.read(file)).hexdigest())
                for file, label in zip(*pair)
            ]
            for split, pair in m.splits.items()
        },
    }
assert "tensorflow" not in sys.modules
print(json.dumps(found))
"""


def child(code: str, *arguments, input_: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        input=input_,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pack(name: str, source: Path, target: Path) -> list[Path]:
    """The archives of a set, made of what they would unpack to."""
    target.mkdir(parents=True)
    cuts, packed = CUTS[name], set()
    for archive, entries in cuts.items():
        folder = target / f"cut {archive}"
        folder.mkdir()
        for entry in entries:
            (source / entry).rename(folder / entry)
            packed.add(entry)
        # DTD's is a plain tar, whatever its name says.
        gz = archive.endswith("gz") and name != "dtd"
        archives.tar(target / archive, folder, "w:gz" if gz else "w")
        for entry in entries:
            (folder / entry).rename(source / entry)
    files = [p for p in source.iterdir() if p.is_file() and p.name not in packed]
    return [*(target / archive for archive in cuts), *files]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder of the unpacked sources, folder of the prepared sets, {name: what must come back})."""
    top = tmp_path_factory.mktemp("sets")
    expected, jobs = {}, []
    for name in SETS:
        expected[name] = getattr(archives, name)(top / "source" / name)
        paths = pack(name, top / "source" / name, top / "archives" / name)
        jobs.append((name, [str(p) for p in paths], SMALL[name]))
    child(PREPARE, top / "out", input_=json.dumps(jobs))
    return top / "source", top / "out", expected


@pytest.fixture(scope="module")
def came_back(made, tmp_path_factory):
    return json.loads(child(READ, made[1], tmp_path_factory.mktemp("index")))


def tail_of(source: Path, file: str) -> Path:
    (path,) = (p for p in source.rglob(Path(file).name) if str(p).endswith(f"/{file}"))
    return path


@pytest.mark.parametrize("name", SETS)
def test_labels_splits_and_pixels_come_back(name, made, came_back):
    source, _, expected = made
    found, wanted = came_back[name], expected[name]
    if name == "dtd":  # a list, one entry a fold; the first is the default
        wanted = {file: folds[0] for file, folds in wanted.items()}
    got = {
        file: (split, label) for split, rows in found["splits"].items() for file, label, _ in rows
    }
    assert got == wanted
    assert found["root"] is None
    for rows in found["splits"].values():
        for file, _, digest in rows:
            with Image.open(tail_of(source / name, file)) as image:
                pixels = np.asarray(image.convert("RGB"))
            if name == "aircraft":
                pixels = pixels[:-20]
            assert hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest() == digest
    assert found["long_side"] == {"aircraft": 40, "flowers": 4}.get(name, 12)


def test_class_names_and_original_ids(came_back):
    def classes(name):
        return came_back[name]["classes"], came_back[name]["ids"]

    assert classes("cub") == (
        ["Black footed Albatross", "Laysan Albatross", "Crested Auklet", "Chuck will Widow"],
        ["1", "2", "3", "4"],
    )
    assert classes("cars") == (archives.CAR_NAMES, ["1", "2", "3", "4"])  # one has a '/'
    assert classes("dogs") == (
        ["Chihuahua", "Japanese spaniel", "African hunting dog"],
        ["n02085620", "n02085782", "n02116738"],
    )
    assert classes("nabirds") == (
        ["Barn Owl", "Eider (Adult male)", "Wren, Pacific"],
        ["37", "295", "1009"],
    )
    assert classes("dtd") == (["banded", "honeycombed"],) * 2
    assert classes("aircraft") == (["Cessna 172", "F-16A/B", "F-16C"], [])
    names, ids = classes("flowers")
    assert names[0] == "pink primrose" and names[-1] == "blackberry lily"
    assert names[15] == "globe-flower" and names[59] == "pink-yellow dahlia?"
    assert len(set(names)) == 102 and ids == [str(i) for i in range(1, 103)]


def test_the_original_bytes_are_kept(made):
    import tensorflow_datasets as tfds

    source, out, _ = made
    builder = tfds.builder_from_directory(out / "cub" / "1.0.0")
    skip = {"image": tfds.decode.SkipDecoding()}
    for row in builder.as_data_source("test", decoders=skip):
        file = tail_of(source / "cub", row["file_name"].decode())
        assert row["image"] == file.read_bytes()


def test_boxes_and_parts_as_published(made):
    import tensorflow_datasets as tfds

    def rows(name, split):
        return tfds.builder_from_directory(made[1] / name / "1.0.0").as_data_source(split)

    for row in rows("cub", "train"):
        i = int(row["id"]) - 1  # the fixture writes x = i, y = 2, width 5.5, height i + 1
        assert row["bbox"].tolist() == [i, 2, i + 5.5, i + 3]
        assert row["parts"].tolist() == [[i + 0.5, p, p % 2] for p in range(15)]
    for row in rows("nabirds", "test"):
        assert row["bbox"].tolist() == [1, 2, 4, 6]
        assert row["parts"].tolist() == [[p, 1, 1] for p in range(11)]
    for row in rows("cars", "test"):
        assert row["bbox"].tolist() == [int(row["id"]) - 1, 2, 8, 9]
    for row in rows("aircraft", "test"):
        assert row["bbox"].tolist() == [3, 4, 30, 22]
    for row in rows("dogs", "train"):
        two = row["id"].endswith(b"_199")
        assert row["bboxes"].tolist() == [[i, 2, 9, 8] for i in range(2 if two else 1)]


def test_nabirds_keeps_the_hierarchy(made):
    own = read.own_metadata(made[1] / "nabirds" / "1.0.0")
    assert own["hierarchy"] == {"37": "22", "22": "0", "295": "0", "1009": "0"}
    assert own["nodes"]["22"] == "Owls"


def splits(manifest) -> dict[str, dict[str, int]]:
    return {
        split: dict(zip(files, labels.tolist(), strict=True))
        for split, (files, labels) in manifest.splits.items()
    }


def test_each_of_the_ten_splits_of_dtd(made, tmp_path):
    _, out, expected = made
    for fold in range(1, 11):
        found = splits(read.prepared(out / "dtd", cache=tmp_path, fold=fold))
        for file, folds in expected["dtd"].items():
            split, label = folds[fold - 1]
            assert found[split][file] == label
        assert [len(part) for part in found.values()] == [4, 4, 4]
    for name, fold in (("dtd", 0), ("dtd", 11), ("cub", 2)):
        with pytest.raises(UserError, match=rf"config\.data\.fold = {fold}: {name} has the splits"):
            read.prepared(out / name, cache=tmp_path, fold=fold)


def test_families_and_manufacturers_of_aircraft(made, tmp_path):
    for level, names in (
        ("family", ("Cessna 172", "F-16")),
        ("manufacturer", ("Cessna", "Lockheed Martin")),
    ):
        found = read.prepared(made[1] / "aircraft", cache=tmp_path, label=level)
        assert found.classes == names and found.ids == ()
        assert found.splits["test"].labels.tolist() == [0, 1, 1]
    with pytest.raises(UserError, match="did you mean 'family'"):
        read.prepared(made[1] / "aircraft", cache=tmp_path, label="familly")


@pytest.mark.parametrize("name", ["cub", "cars"])
def test_retrieval_halves_the_classes(name, made, tmp_path):
    """The first two of four classes train, the last two test; validation is a whole class of the first."""
    found = read.prepared(made[1] / name, cache=tmp_path, splits="retrieval", val_fraction=0.5)
    parts = {split: set(s.labels.tolist()) for split, s in found.splits.items()}
    assert parts["test"] == {2, 3} and parts["train"] | parts["val"] == {0, 1}
    assert len(parts["val"]) == 1
    files = [file for part in splits(found).values() for file in part]
    assert sorted(files) == sorted(made[2][name])  # every image, once
    assert len(found.classes) == 4


def data(root: Path, tmp_path: Path, **values):
    config = c.base().data
    config.source, config.root, config.cache = "tfds", str(root), str(tmp_path)
    config.update(values)
    return config


def test_classification_on_held_out_classes_is_refused(made, tmp_path):
    with pytest.raises(UserError, match=r"no training image(.|\n)*data\.splits=official"):
        manifests.check_classification(load(data(made[1] / "cub", tmp_path, splits="retrieval")))
    with pytest.raises(UserError, match=r"dogs has no such split; .* cub and cars only"):
        load(data(made[1] / "dogs", tmp_path, splits="retrieval"))
    with pytest.raises(UserError, match=r"config\.data\.splits = 'halves' is unknown"):
        load(data(made[1] / "cub", tmp_path, splits="halves"))


def test_validation_is_carved_only_where_the_set_has_none(made, tmp_path):
    carved = load(data(made[1] / "cub", tmp_path, val_fraction=0.4))
    sizes = {split: len(part) for split, part in splits(carved).items()}
    assert sizes == {"train": 4, "val": 4, "test": 4}  # 0.4 of two images a class: one
    assert splits(carved)["test"].items() == {
        (file, label) for file, (split, label) in made[2]["cub"].items() if split == "test"
    }
    official = load(data(made[1] / "aircraft", tmp_path, val_fraction=0.4))
    assert set(splits(official)["val"]) == {"0134309.jpg", "1134309.jpg", "2134309.jpg"}


def test_canvases_are_those_of_the_files_and_keyed_without_decoding(made, tmp_path):
    from fgvc_jax.data import sources

    source, out, _ = made
    found = read.prepared(out / "cub", cache=tmp_path)
    files = found.splits["train"].files
    seen = doctor.look(found, tmp_path / "a", resize=16)  # several threads
    assert seen.side == 16  # 12 pixels, a multiple of 8
    for file, pixels, (h, w) in zip(
        files, *seen.canvases(files).take(np.arange(len(files))), strict=True
    ):
        image = sources.read_image(source / "cub" / "CUB_200_2011" / "images" / file)
        np.testing.assert_array_equal(pixels[:h, :w], image)

    def fails(file):
        raise AssertionError(f"{file} was decoded")

    sealed = dataclasses.replace(found, read=fails)
    np.testing.assert_array_equal(cache.image_sizes(sealed, files), seen.canvases(files).sizes)
    key = cache.key(sealed, files)
    assert key == cache.key(found, files)
    assert key != cache.key(dataclasses.replace(sealed, stamp="other"), files)
    doctor.look(sealed, tmp_path / "a", resize=16)  # found, not made again


def test_the_index_is_read_once_and_anew_when_the_set_changes(made, tmp_path, said):
    import shutil

    shutil.copytree(made[1] / "cub", tmp_path / "cub")
    first = read.prepared(tmp_path / "cub", cache=tmp_path / "c")
    again = read.prepared(tmp_path / "cub", cache=tmp_path / "c")
    assert len(said) == 1 and "12 records once" in said[0]
    assert splits(first) == splits(again) and first.stamp == again.stamp
    (tmp_path / "cub" / "1.0.0" / "dataset_info.json").touch()
    changed = read.prepared(tmp_path / "cub", cache=tmp_path / "c")
    assert len(said) == 2 and changed.stamp != first.stamp and splits(changed) == splits(first)


# Other ways to bring a set


def test_unpacked_folders_and_folders_of_archives_are_read_too(made, tmp_path, said):
    source, out, _ = made
    archive = source.parent / "archives" / "cub"
    for number, path in enumerate((source / "cub", source / "cub" / "CUB_200_2011", archive)):
        to = tmp_path / str(number)
        at = prepare.prepare("cub", [path], to, expected=SMALL["cub"])
        found = read.prepared(at, cache=tmp_path)
        assert splits(found) == splits(read.prepared(out / "cub", cache=tmp_path))
    with pytest.raises(UserError, match=r"classes\.txt stands 2 times"):
        both = [source / "cub", archive]
        prepare.prepare("cub", both, tmp_path / "both", expected=SMALL["cub"])
    folder = tmp_path / "downloads"
    folder.mkdir()
    for archive in CUTS["dogs"]:
        (folder / archive).symlink_to(source.parent / "archives" / "dogs" / archive)
    prepare.prepare("dogs", [folder], tmp_path / "3", expected=SMALL["dogs"])
    assert sum("is not the official file" in line for line in said) == 2 + 3


def test_the_other_names_of_the_cars(tmp_path):
    expected = archives.car_ims(tmp_path / "source")
    at = prepare.prepare("cars", [tmp_path / "source"], tmp_path / "out", expected=SMALL["cars"])
    found = splits(read.prepared(at, cache=tmp_path))
    assert {f: (s, n) for s, part in found.items() for f, n in part.items()} == expected


def test_a_copy_as_class_folders(tmp_path, said):
    for split, count in (("train", 2), ("test", 1)):
        for label, name in enumerate(("Audi A4", "BMW X5", "Fiat 500", "VW Golf")):
            for n in range(count):
                archives.jpeg(tmp_path / "copy" / "car_data" / split / name / f"{n}.jpg", n + label)
    at = prepare.prepare("cars", [tmp_path / "copy"], tmp_path / "out", expected=SMALL["cars"])
    assert any("read as class folders, by count only" in line for line in said)
    found = read.prepared(at, cache=tmp_path)
    assert found.classes == ("Audi A4", "BMW X5", "Fiat 500", "VW Golf")
    assert splits(found)["test"] == {
        f"test/{name}/0.jpg": i for i, name in enumerate(found.classes)
    }
    assert prepare.standing(at) == "the official counts, from class folders"
    (tmp_path / "copy" / "car_data" / "train" / "VW Golf" / "1.jpg").unlink()
    with pytest.raises(UserError, match=r"7 train / 4 test images, where .* 8 train / 4 test"):
        prepare.prepare("cars", [tmp_path / "copy"], tmp_path / "2", expected=SMALL["cars"])


# The command


OFFICIAL = {  # from the sets' papers and pages
    "aircraft": (100, {"train": 3334, "val": 3333, "test": 3333}),
    "cars": (196, {"train": 8144, "test": 8041}),
    "cub": (200, {"train": 5994, "test": 5794}),
    "dogs": (120, {"train": 12000, "test": 8580}),
    "dtd": (47, {"train": 1880, "val": 1880, "test": 1880}),
    "flowers": (102, {"train": 1020, "val": 1020, "test": 6149}),
    "nabirds": (555, {"train": 23929, "test": 24633}),
}


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["fgvc", "prepare", *map(str, arguments)])
    status = cli.main()
    return (status, *capsys.readouterr())


@pytest.mark.parametrize("name", SETS)
def test_the_command_insists_on_the_official_counts(name, made, monkeypatch, capsys, tmp_path):
    expected = prepare.module(name).EXPECTED
    assert (expected.classes["label"], expected.splits) == OFFICIAL[name]
    if expected.retrieval:
        assert sum(expected.retrieval) == sum(expected.splits.values())
    status, _, err = call(
        monkeypatch, capsys, name, "--archive", made[0] / name, f"--out={tmp_path}"
    )
    assert status == 2 and f"error: {name}" in err and "Traceback" not in err
    wrong = "train" if name == "flowers" else "classes, where there must be"
    assert (
        wrong in err
        and f"{OFFICIAL[name][1]['train'] if name == 'flowers' else OFFICIAL[name][0]:,}" in err
    )
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_the_last_line_of_the_command(made, monkeypatch, capsys, tmp_path, said):
    monkeypatch.setattr(prepare.module("cub"), "EXPECTED", SMALL["cub"])
    monkeypatch.setenv("FGVC_DATA", str(tmp_path))
    command = ("cub", "--archive", made[0].parent / "archives" / "cub" / "CUB_200_2011.tgz")
    status, out, err = call(monkeypatch, capsys, *command)
    assert status == 0, err
    last = f"8 train / 4 test: the official list, in {tmp_path}/cub"
    assert out.splitlines()[-1] == last
    status, out, _ = call(monkeypatch, capsys, *command)
    assert status == 0 and "is there already" in said[-1] and out.splitlines()[-1] == last
    assert [p.name for p in tmp_path.iterdir()] == ["cub"]


def test_what_the_command_refuses(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("FGVC_DATA", raising=False)
    status, _, err = call(monkeypatch, capsys, "cup", "--download", "--out=x")
    assert status == 2 and "did you mean 'cub'" in err
    status, _, err = call(monkeypatch, capsys, "cub", "--archive", "x")
    assert status == 2 and "--out=DIR" in err
    status, _, err = call(monkeypatch, capsys, "cub", "--archive", "x", f"--out={tmp_path}")
    assert status == 2 and "x does not exist" in err
    # No address works: the files to look for are named, with what they must be like.
    status, _, err = call(monkeypatch, capsys, "cars", "--download", f"--out={tmp_path}")
    assert status == 2 and "dead since 2023" in err and "cars_test_annos_withlabels.mat" in err
    assert "sha256:512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288" in err
    status, _, err = call(monkeypatch, capsys, "nabirds", "--download", f"--out={tmp_path}")
    assert status == 2 and "https://dl.allaboutbirds.org/nabirds" in err


# Wrong archives


def cut(name: str, line: int, change=lambda line: []):
    """Replaces one line of a text list, by default with nothing."""

    def damage(source: Path):
        (path,) = source.rglob(name)
        lines = path.read_text().splitlines()
        lines[line : line + 1] = change(lines[line])
        path.write_text("\n".join(lines) + "\n")

    return damage


def remove(name: str):
    return lambda source: next(source.rglob(name)).unlink()


def empty(name: str, content: bytes = b""):
    return lambda source: next(source.rglob(name)).write_bytes(content)


def last_bird(source: Path) -> None:
    for name in CUB_LISTS:
        cut(name, 11)(source)
    (parts,) = source.rglob("part_locs.txt")
    parts.write_text("".join(parts.read_text().splitlines(keepends=True)[:-15]))


def flower_sets(**changes):
    def damage(source):
        from scipy.io import loadmat

        sets = {k: v for k, v in loadmat(source / "setid.mat").items() if k[0] != "_"}
        archives.savemat(source / "setid.mat", **sets | {k: sets[v] for k, v in changes.items()})

    return damage


def car_labels(source):
    from scipy.io import loadmat

    path = source / "cars_test_annos_withlabels.mat"
    annotations = loadmat(path)["annotations"]
    annotations[0, 1]["class"] = 5
    archives.savemat(path, annotations=annotations)


CUB_LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt")
WRONG = {
    "a list is missing": ("cub", remove("image_class_labels.txt"), "no image_class_labels.txt"),
    "the split is missing": ("cub", remove("train_test_split.txt"), "no train_test_split.txt"),
    "one image less": (
        "cub",
        last_bird,
        "7 train / 4 test images, where the official list has 8 train / 4 test",
    ),
    "a line is missing": (
        "cub",
        cut("train_test_split.txt", 4),
        "train_test_split.txt has no line",
    ),
    "a line too many": ("cub", cut("images.txt", 4), "images.txt has no line for '5'"),
    "an image is absent": ("cub", remove("*_0001_12.jpg"), "1 of the 12 images that images.txt"),
    "an image is empty": ("cub", empty("*_0001_12.jpg"), "1 files are not images"),
    "an image is a page": ("cub", empty("*_0001_12.jpg", b"<html>"), "1 files are not images"),
    "a label out of range": (
        "cub",
        cut("image_class_labels.txt", 3, lambda line: ["4 5"]),
        "image 4 .*class '5' is not in classes.txt, which has 4",
    ),
    "a split that is none": (
        "cub",
        cut("train_test_split.txt", 3, lambda line: ["4 2"]),
        "image 4 .*'2' is neither 1",
    ),
    "a line twice": ("cub", cut("images.txt", 0, lambda x: [x, x]), "line 2: '1' stands twice"),
    "no value": ("cub", cut("images.txt", 0, lambda x: ["1"]), "line 1: '1' has no value"),
    "a box of words": (
        "cub",
        cut("bounding_boxes.txt", 0, lambda x: ["1 a b c d"]),
        "image 1: 'a b c d' is not 4 numbers",
    ),
    "a class less": ("nabirds", cut("classes.txt", 1), "class '37' is not in classes.txt"),
    "a label beyond the table": (
        "cars",
        car_labels,
        r"cars_test/00002.jpg: class 5 is not in 1..4",
    ),
    "the test labels are missing": (
        "cars",
        remove("cars_test_annos_withlabels.mat"),
        "no cars_test_annos_withlabels.mat",
    ),
    "the list without labels": (
        "cars",
        lambda s: (s / "devkit" / "cars_test_annos.mat").replace(
            s / "cars_test_annos_withlabels.mat"
        ),
        "has no field 'class'",
    ),
    "no MATLAB file": ("cars", empty("cars_meta.mat", b"x" * 200), "cannot be read as a MATLAB"),
    "train and test exchanged": (
        "flowers",
        flower_sets(trnid="tstid", tstid="trnid"),
        "Train and test are exchanged",
    ),
    "an image in two sets": ("flowers", flower_sets(valid="tstid"), "each once"),
    "in two parts of a split": (
        "dtd",
        cut("train3.txt", 0, lambda x: [x, x]),
        "stands twice in split 3",
    ),
    "not in a split": ("dtd", cut("test7.txt", 0), "is missing from split 7"),
    "an unknown family": (
        "aircraft",
        cut("images_family_val.txt", 0, lambda x: [x.split()[0] + " Boeing 747"]),
        "'Boeing 747' is not in families.txt",
    ),
    "the lists differ": (
        "aircraft",
        cut("images_family_val.txt", 0),
        "images_family_val.txt has no",
    ),
    "labels of other folders": (
        "dogs",
        lambda s: archives.savemat(
            s / "test_list.mat",
            file_list=archives.cells(["n02085782-Japanese_spaniel/n02085782_1073.jpg"]),
            labels=[[1]],
        ),
        "label 1 is n02085620-Chihuahua",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_archives_fail_by_what_is_wrong(what, made, tmp_path):
    import shutil

    name, damage, message = WRONG[what]
    source = tmp_path / "source"
    shutil.copytree(made[0] / name, source)
    expected = SMALL[name]
    if what == "train and test exchanged":  # of different size, as they really are
        expected = Expected(expected.classes, {"train": 101, "val": 102, "test": 103})
        from scipy.io import loadmat

        sets = {k: v for k, v in loadmat(source / "setid.mat").items() if k[0] != "_"}
        sets["tstid"] = np.concatenate([sets["tstid"], sets["trnid"][:, :1]], axis=1)
        archives.savemat(source / "setid.mat", **sets | {"trnid": sets["trnid"][:, 1:]})
    damage(source)
    with pytest.raises(UserError, match=message):
        prepare.prepare(name, [source], tmp_path / "out", expected=expected)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_archive_is_named_with_the_others(made, tmp_path):
    archive = made[0].parent / "archives" / "dogs" / "images.tar"
    with pytest.raises(UserError, match=r"no train_list\.mat(.|\n)*images\.tar, lists\.tar"):
        prepare.prepare("dogs", [archive], tmp_path, expected=SMALL["dogs"])


def test_dogs_without_annotations_have_no_boxes(made, tmp_path):
    paths = [made[0].parent / "archives" / "dogs" / name for name in ("images.tar", "lists.tar")]
    at = prepare.prepare("dogs", paths, tmp_path, expected=SMALL["dogs"])
    assert (
        "bboxes" not in json.loads((at / "features.json").read_text())["featuresDict"]["features"]
    )


# Sets that others prepared


def foreign(folder: Path, features: dict, rows: dict[str, list[dict]], name: str = "food") -> Path:
    """A set of somebody else's, written by TFDS itself."""
    import tensorflow_datasets as tfds

    class Food(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("2.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: enumerate(rows_) for split, rows_ in rows.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Food.name = name
    builder = Food(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare(download_dir=str(folder / "downloads"))
    return Path(builder.data_dir)


def photo(number: int) -> dict:
    pixels = np.full((6, 8, 3), 20 * number, np.uint8)
    files = io.BytesIO(), io.BytesIO()
    for file, array in zip(files, (pixels, pixels[..., 0]), strict=True):
        Image.fromarray(array).save(file, "png")
        file.seek(0)
    return {"photo": files[0], "mask": files[1], "number": number}


@pytest.fixture(scope="module")
def food(tmp_path_factory):
    import tensorflow_datasets as tfds

    features = {
        "photo": tfds.features.Image(),
        "mask": tfds.features.Image(shape=(None, None, 1)),
        "dish": tfds.features.ClassLabel(names=["soup", "pie"]),
        "number": tfds.features.Scalar(dtype=np.int64),
    }
    rows = {
        "train": [photo(i) | {"dish": i % 2} for i in range(4)],
        "validation": [photo(i) | {"dish": i % 2} for i in range(4, 6)],
        "test": [photo(i) | {"dish": -1} for i in range(6, 9)],
        "extra": [photo(9) | {"dish": 0}],
    }
    # -1, as TFDS marks what has no label, cannot be encoded as a name.
    return foreign(tmp_path_factory.mktemp("food"), features, rows)


def test_another_set_is_read_by_its_folder_or_its_name(food, tmp_path, monkeypatch, said):
    found = read.prepared(food.parent, cache=tmp_path, image="photo")
    assert found.classes == ("soup", "pie") and found.ids == ()
    assert {split: len(part) for split, part in splits(found).items()} == {"train": 4, "val": 2}
    assert len(found.unlabelled) == 3 and all(f.startswith("test/") for f in found.unlabelled)
    assert any("'extra' (1 images) is not used" in line for line in said)
    for (file, label), split in [
        *((item, "train") for item in splits(found)["train"].items()),
        *((item, "validation") for item in splits(found)["val"].items()),
    ]:
        assert file.startswith(f"{split}/")
        number = found.read(file)[0, 0, 0] // 20  # the pixels tell which it is
        assert label == number % 2
    monkeypatch.setenv("TFDS_DATA_DIR", str(food.parents[1]))
    named = read.prepared("tfds:food", cache=tmp_path, image="photo")
    assert splits(named) == splits(found)


def test_several_features_are_named_and_chosen(food, tmp_path):
    with pytest.raises(UserError, match=r"There are: .*mask.*\. Set config\.data\.image_feature"):
        read.prepared(food, cache=tmp_path)
    with pytest.raises(UserError, match=r"'phot' is unknown; did you mean 'photo'"):
        read.prepared(food, cache=tmp_path, image="phot")


def test_what_cannot_be_read(food, tmp_path):
    import shutil

    with pytest.raises(UserError, match=r"no prepared data set in .*fgvc prepare NAME"):
        read.prepared(tmp_path, cache=tmp_path)
    with pytest.raises(UserError, match=r"no prepared data set in .*/tensorflow_datasets/food101"):
        read.prepared("tfds:food101", cache=tmp_path)
    for version in ("1.0.0", "2.0.0"):
        shutil.copytree(food, tmp_path / "food" / version)
    with pytest.raises(UserError, match="holds 2 prepared data sets"):
        read.prepared(tmp_path / "food", cache=tmp_path)
    info = tmp_path / "food" / "2.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match=r"tfrecord, which only TensorFlow reads.*file_format"):
        read.prepared(info.parent, cache=tmp_path, image="photo")


def test_a_set_with_train_alone_is_split(tmp_path):
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=2),
        "filename": tfds.features.Text(),
    }
    rows = []
    for i in range(20):
        rows.append({"image": photo(i % 12)["photo"], "label": i % 2, "filename": f"{i}.png"})
    at = foreign(tmp_path, features, {"train": rows}, "sat")
    found = load(data(at, tmp_path, val_fraction=0.2, test_fraction=0.3))
    assert {split: len(part) for split, part in splits(found).items()} == {
        "train": 10,
        "val": 4,
        "test": 6,
    }
    for part in splits(found).values():
        assert all(int(file.removesuffix(".png")) % 2 == label for file, label in part.items())
