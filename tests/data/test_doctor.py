"""The doctor finds every kind of damage by name, and nothing on sound data."""

import base64
import dataclasses
import html.parser
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image, ImageEnhance, ImageOps

from fgvc_jax import cli, run
from fgvc_jax.config import base
from fgvc_jax.data import doctor
from fgvc_jax.data import load as load_
from fgvc_jax.data import manifest as manifests
from fgvc_jax.data.doctor import duplicates, page
from fgvc_jax.data.doctor.report import report
from fgvc_jax.data.manifest import Manifest, Split
from fgvc_jax.data.sources import digits, folder, images
from fgvc_jax.data.split import carve
from fgvc_jax.errors import UserError

PRODUCE31 = Path(
    os.environ.get(
        "FGVC_PRODUCE31", Path(__file__).resolve().parents[2] / "../shared/data/produce31"
    )
)
needs_photos = pytest.mark.skipif(not PRODUCE31.is_dir(), reason="needs produce31")
SIZES = {"train": 6, "val": 2, "test": 3}


def scene(seed: int, size=(160, 120)) -> Image.Image:
    """A smooth colourful picture with some grain: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    pixels = np.asarray(smooth.resize(size, Image.Resampling.BICUBIC), int)
    return Image.fromarray((pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module", params=["made", pytest.param("produce31", marks=needs_photos)])
def sound(request, tmp_path_factory):
    """Four classes of eleven sound JPEGs: root/<split>/<class>/<number>.jpg."""
    root = tmp_path_factory.mktemp(request.param) / "data"
    for c, name in enumerate("abcd"):
        for s, (split, count) in enumerate(SIZES.items()):
            (root / split / name).mkdir(parents=True)
            if request.param == "produce31":
                wanted = ("Lime", "Mango", "Orange", "Watermelon")[c]
                photos = sorted((PRODUCE31 / split / wanted).iterdir())[:count]
                for i, photo in enumerate(photos):
                    shutil.copyfile(photo, root / split / name / f"{i}.jpg")
            else:
                for i in range(count):
                    path = root / split / name / f"{i}.jpg"
                    scene(1000 * c + 100 * s + i).save(path, quality=90)
    return root


@pytest.fixture
def root(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "data"))


def load(root: Path) -> Manifest:
    return carve(folder(root))


def examined(manifest: Manifest, directory: Path, **kw) -> doctor.Findings:
    return doctor.judge(manifest, doctor.collect(manifest, directory), **kw)


def examine(root: Path, **kw) -> doctor.Findings:
    return examined(load(root), root.parent / "cache", **kw)


def found(findings, severities=("error", "warning", "note")) -> dict[str, list[tuple[str, ...]]]:
    """kind -> the files of each case."""
    return {f.kind: [c.files for c in f.cases] for s in severities for f in findings.of(s)}


def png(depth: int, colour: int, rows: bytes, size: tuple[int, int]) -> bytes:
    """By hand: Pillow writes neither 16-bit colour nor headers that lie."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def half(path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    scene(9000).save(buffer, kind)
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(9000).save(path, exif=exif)


def smaller(source: Path, target: Path) -> None:
    with Image.open(source) as image:
        size = tuple(side * 2 // 3 for side in image.size)
        image.resize(size, Image.Resampling.BICUBIC).save(target, quality=60)


def lossless(source: Path, target: Path) -> None:
    with Image.open(source) as image:
        image.save(target)


def things(root: Path) -> None:
    """In place of all: three views of each of 40 things, in class folders that come without a split."""
    shutil.rmtree(root)
    for thing in range(40):
        for view in range(3):
            path = root / "abcd"[thing % 4] / f"thing{thing}_view{view}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            scene(100 * thing + view, (40, 32)).save(path)


def forbid(path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root reads everything")
    path.chmod(0)


SIXTEEN = b"".join(b"\0" + bytes(range(6 * 40)) for _ in range(40))
NEW = "train/a/new"
# What is put where (a function of the root), then: kind, severity, files of the case, words of the report.
DAMAGE = {
    "zero bytes": (
        lambda r: (r / f"{NEW}.jpg").touch(),
        *("unreadable", "error", [f"{NEW}.jpg"], "the file is empty"),
    ),
    "truncated JPEG": (
        lambda r: half(r / f"{NEW}.jpg", "JPEG"),
        *("unreadable", "error", [f"{NEW}.jpg"], "truncated"),
    ),
    "truncated PNG": (
        lambda r: half(r / f"{NEW}.png", "PNG"),
        *("unreadable", "error", [f"{NEW}.png"], "truncated"),
    ),
    "text": (
        lambda r: (r / f"{NEW}.jpg").write_text("Not found\n"),
        *("unreadable", "error", [f"{NEW}.jpg"], "a text file, not an image"),
    ),
    "HTML error page": (
        lambda r: (r / f"{NEW}.jpg").write_text("\n<!DOCTYPE html><title>404</title>"),
        *("unreadable", "error", [f"{NEW}.jpg"], "an HTML page, not an image"),
    ),
    "decompression bomb": (
        lambda r: (r / f"{NEW}.png").write_bytes(png(8, 2, b"\0", (40000, 40000))),
        *("unreadable", "error", [f"{NEW}.png"], "far more pixels than a photo"),
    ),
    "link to nothing": (
        lambda r: (r / f"{NEW}.jpg").symlink_to("gone.jpg"),
        *("unreadable", "error", [f"{NEW}.jpg"], "a link to gone.jpg, which does not exist"),
    ),
    "no permission": (
        lambda r: (scene(9000).save(r / f"{NEW}.jpg"), forbid(r / f"{NEW}.jpg")),
        *("unreadable", "error", [f"{NEW}.jpg"], "Permission denied"),
    ),
    "unreadable test image": (
        lambda r: (r / "test/a/0.jpg").write_bytes(b""),
        *("unreadable", "error", ["test/a/0.jpg"], "the file is empty"),
    ),
    "PNG called .jpg": (
        lambda r: scene(9000).save(r / f"{NEW}.jpg", "PNG"),
        *("extension", "note", [f"{NEW}.jpg"], "of another format than their extension"),
    ),
    "CMYK JPEG": (
        lambda r: scene(9000).convert("CMYK").save(r / f"{NEW}.jpg"),
        *("cmyk", "note", [f"{NEW}.jpg"], "CMYK"),
    ),
    "palette PNG": (
        lambda r: scene(9000).quantize(16).save(r / f"{NEW}.png"),
        *("palette", "note", [f"{NEW}.png"], "with a palette"),
    ),
    "alpha PNG": (
        lambda r: scene(9000).convert("RGBA").save(r / f"{NEW}.png"),
        *("alpha", "note", [f"{NEW}.png"], "laid over white"),
    ),
    "16-bit colour PNG": (
        lambda r: (r / f"{NEW}.png").write_bytes(png(16, 2, SIXTEEN, (40, 40))),
        *("sixteen_bits", "note", [f"{NEW}.png"], "16 bits"),
    ),
    "16-bit grey PNG": (
        lambda r: Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40).save(
            r / f"{NEW}.png"
        ),
        *("sixteen_bits", "note", [f"{NEW}.png"], "16 bits"),
    ),
    "EXIF-rotated": (
        lambda r: rotated(r / f"{NEW}.jpg"),
        *("rotated", "note", [f"{NEW}.jpg"], "turned upright"),
    ),
    "grey": (
        lambda r: scene(9000).convert("L").save(r / f"{NEW}.jpg"),
        *("grey", "note", [f"{NEW}.jpg"], "grey"),
    ),
    "one pixel": (
        lambda r: Image.new("RGB", (1, 1), "red").save(r / f"{NEW}.png"),
        *("tiny", "warning", [f"{NEW}.png"], "1 x 1 pixels"),
    ),
    "animated GIF": (
        lambda r: scene(9000).save(r / f"{NEW}.gif", save_all=True, append_images=[scene(9001)]),
        *("animated", "note", [f"{NEW}.gif"], "first frame"),
    ),
    "copy in the class": (
        lambda r: shutil.copy(r / "train/a/0.jpg", r / f"{NEW}.jpg"),
        *("copy", "warning", ["train/a/0.jpg", f"{NEW}.jpg"], "count double"),
    ),
    "copy in another class": (
        lambda r: shutil.copy(r / "train/b/0.jpg", r / f"{NEW}.jpg"),
        *("contradiction", "error", [f"{NEW}.jpg", "train/b/0.jpg"], "different classes"),
    ),
    "copy of a test image": (
        lambda r: shutil.copy(r / "test/a/0.jpg", r / f"{NEW}.jpg"),
        *("leak", "error", ["test/a/0.jpg", f"{NEW}.jpg"], "in several splits"),
    ),
    "lossless copy of a test image": (
        lambda r: lossless(r / "test/a/0.jpg", r / f"{NEW}.png"),
        *("leak", "error", ["test/a/0.jpg", f"{NEW}.png"], "in several splits"),
    ),
    "re-encoded, smaller copy of a test image": (
        lambda r: smaller(r / "test/a/0.jpg", r / f"{NEW}.jpg"),
        *("near_leak", "warning", ["test/a/0.jpg", f"{NEW}.jpg"], "nearly equal"),
    ),
    "re-encoded copy in another class": (
        lambda r: smaller(r / "train/b/0.jpg", r / f"{NEW}.jpg"),
        *("near_contradiction", "warning", [f"{NEW}.jpg", "train/b/0.jpg"], "different classes"),
    ),
    "class without test images": (
        lambda r: shutil.rmtree(r / "test/b"),
        *("missing_class", "warning", None, "1 of 4 classes have no test image: b"),
    ),
    "class with one image": (
        lambda r: [(r / f"train/c/{i}.jpg").unlink() for i in range(1, 6)],
        *("single_image", "warning", None, "1 of 4 classes have a single training image: c"),
    ),
    "strong imbalance": (
        lambda r: [scene(9100 + i).save(r / f"train/d/x{i}.jpg") for i in range(54)],
        *("imbalance", "warning", None, "10 times"),
    ),
    "odd file name": (
        lambda r: scene(9000).save(os.fsencode(r) + b"/train/a/\xff\n.jpg", "JPEG"),
        *("odd_name", "warning", ["train/a/\udcff\n.jpg"], "train/a/\\udcff\\n.jpg"),
    ),
    "classes that differ in case": (
        lambda r: (
            (r / "train/A").mkdir(),
            [scene(9100 + i).save(r / f"train/A/{i}.jpg") for i in (1, 2)],
        ),
        *("twin_classes", "warning", None, "'A' and 'a'"),
    ),
    "photos of one thing in two splits": (
        things,
        *("group_leak", "warning", ..., " of 40 things"),
    ),
}


def test_sound_images_raise_no_alarm(sound):
    findings = examine(sound)
    assert found(findings) == {}
    assert report(findings)[-1] == "Ready for training."
    assert doctor.leave_out(load(sound), findings).excluded == {}
    doctor.stop_at_errors(findings, "stop")


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(root, name):
    harm, kind, severity, files, words = DAMAGE[name]
    harm(root)
    findings = examine(root)
    cases = found(findings, [severity])[kind]
    if files is not ...:
        assert cases == ([tuple(files)] if files else [])
    lines = report(findings)
    assert any(words in line for line in lines)
    # Nothing but this, and what comes with it.
    comes_with = {
        "16-bit grey PNG": {"grey"},
        "animated GIF": {"palette"},
        "classes that differ in case": {"missing_class"},
    }
    assert found(findings).keys() - {kind} == comes_with.get(name, set())
    if severity == "error":
        assert lines[-1] == "Training stops: 1 kind of error."
        with pytest.raises(UserError, match=words if kind == "unreadable" else None) as error:
            doctor.stop_at_errors(findings, "stop")
        assert all(file in str(error.value) for file in files)
    else:
        assert lines[-1].startswith("Ready for training")


def test_an_id_outside_the_table_is_refused(sound):
    manifest = load(sound)
    labels = manifest.splits["test"].labels.copy()
    labels[1] = 4780
    test = manifest.splits["test"]._replace(labels=labels)
    with pytest.raises(UserError, match=r"test/a/1.jpg.*4780 is not in 0\.\.3"):
        manifests.check(dataclasses.replace(manifest, splits=manifest.splits | {"test": test}))


@needs_photos
def test_no_false_alarm_on_all_of_produce31(tmp_path):
    findings = examined(load(PRODUCE31), tmp_path)
    # It says itself that validation lacks 8 of its classes.
    assert found(findings, ["error"]) == {}
    assert [f.text.partition(":")[0] for f in findings.of("warning")] == [
        "8 of 31 classes have no val image"
    ]
    (note,) = findings.of("note")
    assert note.kind == "near_copy" and note.text.startswith("63 pairs")
    # No pair across classes or splits: each of the 63 was looked at, and is one scene photographed twice.
    # These are the nearest of them.
    facts = doctor.collect(load(PRODUCE31), tmp_path)
    pairs = {tuple(facts.files[row] for row in pair) for pair in facts.near.tolist()}
    assert len(pairs) == 63 and pairs >= {
        tuple(f"{split}/{name}/{name}_{number}.jpg" for number in numbers)
        for split, name, *numbers in (
            ("test", "Floury-Potato", "006", "016"),
            ("test", "Royal-Gala", "052", "062"),
            ("train", "Yellow-Bell-Pepper", "012", "013"),
        )
    }


def cut(image: Image.Image, left: float, top: float) -> Image.Image:
    """90 % of each side."""
    w, h = image.size
    x, y = round(0.1 * w * left), round(0.1 * h * top)
    return image.crop((x, y, x + round(0.9 * w), y + round(0.9 * h)))


CHANGES = {
    "mirrored": ImageOps.mirror,
    "cropped": lambda image: cut(image, 0.5, 0.5),
    "cropped aside": lambda image: cut(image, 0.2, 0.7),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    "turned": lambda image: image.rotate(3, Image.Resampling.BILINEAR),
    "turned back": lambda image: image.rotate(-3, Image.Resampling.BILINEAR),
    "grey": lambda image: image.convert("L"),
    "mirrored and cropped": lambda image: cut(ImageOps.mirror(image), 0.5, 0.5),
    "cropped and grey": lambda image: cut(image, 0.5, 0.5).convert("L"),
    "re-encoded": lambda image: image,
    "halved": lambda image: image.resize([side // 2 for side in image.size]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_in_another_split_are_found_and_nothing_else(root, change):
    """Of every test image one in train: 12 pairs, each with its own original."""
    expected = set()
    for path in sorted((root / "test").rglob("*.jpg")):
        copy = root / "train" / path.parent.name / f"copy{path.name}"
        CHANGES[change](Image.open(path)).convert("RGB").save(copy, quality=80)
        expected.add((str(path.relative_to(root)), str(copy.relative_to(root))))
    findings = examine(root)
    # Grey copies are also counted as grey.
    assert set(found(findings)) - {"grey"} == {"near_leak"}
    assert set(found(findings)["near_leak"]) == expected


def test_a_carved_split_keeps_changed_copies_on_one_side(root, said):
    """Class folders without a split: of each image a mirrored and a cropped copy in the same class."""
    shutil.rmtree(root / "val")
    shutil.rmtree(root / "test")
    for path in sorted((root / "train").rglob("*.jpg")):
        image = Image.open(path)
        ImageOps.mirror(image).save(path.with_name(f"m{path.name}"))
        cut(image, 0.5, 0.5).save(path.with_name(f"c{path.name}"))
    data = base().data
    data.root, data.val_fraction = str(root), 0.34
    manifest = load_.read(data)
    facts = doctor.collect(manifest, root.parent / "cache")

    def apart(manifest):
        side = {f: s for s, split in manifest.splits.items() for f in split.files}
        names = [f for f in side if Path(f).name[0] not in "mc"]
        return [
            f
            for f in names
            if len({side[str(Path(f).with_name(p + Path(f).name))] for p in ("", "m", "c")}) > 1
        ]

    assert len(apart(load_.split(manifest, data))) > 6
    whole = load_.split(manifest, data, facts)
    assert apart(whole) == [] and len(whole.splits["val"].files) == 24
    assert any("72 images are equal or nearly equal" in line for line in said)
    assert not {"near_leak", "leak"} & set(found(doctor.judge(whole, facts)))
    # Where the splits are given nothing moves.
    given = dataclasses.replace(
        manifest, splits={"train": manifest.splits["train"], "val": manifest.splits["train"]}
    )
    with pytest.raises(UserError, match="stands in"):
        load_.split(given, data, facts)


# What it was before images were looked at first, and near copies kept together.
DIGITS = {0.1: "c125c48bbef0e503", 0.3: "5457f92f4d5396b8"}


@pytest.mark.parametrize("test_fraction", DIGITS)
def test_the_split_of_the_digits_stays(tmp_path, test_fraction):
    data = base().data
    data.source, data.test_fraction = "digits", test_fraction
    manifest = load_.read(data)
    facts = doctor.look(manifest, tmp_path, resize=32).facts
    assert manifests.digest(load_.split(manifest, data, facts)) == DIGITS[test_fraction]


def test_one_look_names_faults_of_the_layout_and_of_the_images(root, check):
    (root / "train/empty").mkdir()
    shutil.copytree(root / "test/a", root / "test/aa")
    shutil.rmtree(root / "val")
    (root / "val").mkdir()
    (root / "train/b/0.jpg").write_bytes(b"")
    (root / "test/aa/1.jpg").write_bytes(b"")
    status, out, err = check(root)
    assert status == 2 and "Training stops: 5 kinds of error." in err
    for words in (
        "1 class folder without images",
        "Class 'aa' in",
        "The nearest training class is 'a'",
        "No class folders with images in",
        "train/b/0.jpg (train, b): the file is empty",
        "test/aa/1.jpg (test, aa): the file is empty",
        "sets of equal images with different classes",
    ):
        assert words in out, words
    manifest = folder(root)
    with pytest.raises(UserError, match=r"(?s)without images.*No class folders.*'aa' in"):
        manifests.check(manifest)
    findings = doctor.judge(
        carve(manifest), doctor.collect(manifest, root.parent / "cache"), classify=False
    )
    for on_bad in ("stop", "skip"):  # which mends images, not folders
        with pytest.raises(UserError, match="without images"):
            doctor.stop_at_errors(findings, on_bad)


def test_a_class_that_train_lacks_is_an_error_of_classification_only(root):
    manifest = load(root)
    train = manifest.splits["train"]
    keep = train.labels != 1
    left = Split(tuple(f for f, k in zip(train.files, keep, strict=True) if k), train.labels[keep])
    manifest = dataclasses.replace(manifest, splits=manifest.splits | {"train": left})
    manifests.check(manifest)
    with pytest.raises(UserError, match="1 class has no training image: b"):
        manifests.check_classification(manifest)
    facts = doctor.collect(manifest, root.parent / "cache")
    assert [f.kind for f in doctor.judge(manifest, facts).of("error")] == ["no_training_image"]
    assert doctor.judge(manifest, facts, classify=False).of("error") == []


def test_copies_in_published_splits_are_reported_only(root):
    shutil.copy(root / "test/b/0.jpg", root / "train/b/1.jpg")
    shutil.copy(root / "train/c/0.jpg", root / "train/d/0.jpg")
    published = dataclasses.replace(load(root), official=True)
    findings = examined(published, root.parent / "cache")
    assert {"leak", "contradiction"} <= {finding.kind for finding in findings.of("warning")}
    doctor.stop_at_errors(findings, "stop")


def test_skip_leaves_out_training_images_only_and_records_them(root):
    (root / "train/a/0.jpg").write_bytes(b"")
    shutil.copy(root / "test/b/0.jpg", root / "train/b/1.jpg")
    shutil.copy(root / "train/c/0.jpg", root / "train/d/0.jpg")  # which of them is right?
    shutil.copy(root / "test/c/0.jpg", root / "test/d/0.jpg")
    manifest = load(root)
    findings = examine(root)
    with pytest.raises(UserError, match=r"on_bad=skip .* of train are left out .*, 4 in all"):
        doctor.stop_at_errors(findings, "stop")
    doctor.stop_at_errors(findings, "skip")
    admitted = doctor.leave_out(manifest, findings)
    gone = ["train/a/0.jpg", "train/b/1.jpg", "train/c/0.jpg", "train/d/0.jpg"]
    assert sorted(admitted.excluded) == gone
    assert admitted.excluded["train/a/0.jpg"] == "the file is empty"
    assert admitted.excluded["train/b/1.jpg"] == "equal to an image of test"
    before = dict(zip(*manifest.splits["train"], strict=True))
    after = dict(zip(*admitted.splits["train"], strict=True))
    assert after == {file: label for file, label in before.items() if file not in gone}
    for split in ("val", "test"):
        assert admitted.splits[split] is manifest.splits[split]
    manifests.save(admitted, root.parent / "manifest.json")
    saved = json.loads((root.parent / "manifest.json").read_text())
    assert saved["excluded"] == admitted.excluded

    (root / "test/a/0.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"test/a/0.jpg \(test, a\): the file is empty\nEval"):
        doctor.stop_at_errors(examine(root), "skip")


def test_skip_that_empties_a_class_is_refused(root):
    for file in (root / "train/a").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match="1 class has no training image: a"):
        doctor.leave_out(load(root), examine(root))
    with pytest.raises(UserError, match=r"on_bad = 'skp'.*did you mean 'skip'"):
        doctor.stop_at_errors(examine(root), "skp")


def test_images_are_read_once_until_a_file_changes(root):
    manifest, read = load(root), []

    def counting(file):
        read.append(file)
        return manifest.read(file)

    counted = dataclasses.replace(manifest, read=counting)
    first = examined(counted, root.parent / "cache")
    assert sorted(read) == sorted(f for split in manifest.splits.values() for f in split.files)
    read.clear()
    assert examined(counted, root.parent / "cache") == first and not read
    # Other splits and labels are judged without another look at the images.
    both = manifest.splits["train"].files + manifest.splits["val"].files
    other = Split(both[::-1], np.resize(np.arange(4, dtype=np.int32), len(both)))
    moved = dataclasses.replace(counted, splits={"train": other, "test": manifest.splits["test"]})
    counts = examined(moved, root.parent / "cache").counts
    assert counts == {name: {"train": 8, "test": 3} for name in "abcd"} and not read
    (root / "train/a/0.jpg").write_bytes(b"x")
    found_now = found(examined(counted, root.parent / "cache"))
    assert found_now["unreadable"] == [("train/a/0.jpg",)]
    assert not list((root.parent / "cache").glob("*.partial"))


def test_what_could_not_be_read_is_tried_again(root):
    """A file that may be read now is as old and as large as before."""
    manifest = load(root)

    def forbidden(file):
        if file == "train/a/0.jpg":
            raise UserError(f"{root}/{file}: cannot be read as an image: Permission denied")
        return manifest.read(file)

    refused = dataclasses.replace(manifest, read=forbidden)
    for _ in range(2):
        findings = examined(refused, root.parent / "cache")
        assert [c.remark for c in findings.of("error")[0].cases] == ["Permission denied"]
    assert found(examined(manifest, root.parent / "cache")) == {}


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_damaged_header_costs_its_remarks_only(root, kind):
    """The pixels are sound, so the image is, too."""
    scene(9000).save(root / f"{NEW}.{kind}", exif=b"Exif\0\0not a TIFF header")
    with pytest.raises(SyntaxError):  # what Pillow makes of it
        Image.open(root / f"{NEW}.{kind}").getexif()
    assert found(examine(root)) == {}


def test_unlabelled_images_are_looked_at_too(root):
    shutil.copytree(root / "test/a", root / "unlabelled")
    (root / "unlabelled/1.jpg").write_bytes(b"")
    manifest = dataclasses.replace(load(root), unlabelled=("unlabelled/0.jpg", "unlabelled/1.jpg"))
    findings = examined(manifest, root.parent / "cache")
    assert found(findings) == {
        "unreadable": [("unlabelled/1.jpg",)],
        "leak": [("test/a/0.jpg", "unlabelled/0.jpg")],
    }
    with pytest.raises(UserError, match=r"unlabelled/1.jpg \(unlabelled\)"):
        doctor.stop_at_errors(findings, "skip")


def test_near_pairs_are_those_of_a_comparison_of_all_with_all():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (60, 16), np.uint8)
    levels = rng.integers(0, 256, (60, 192), np.uint8)
    for i in range(30, 60):  # copies with a few bits and levels changed, around the bounds
        flips = rng.permutation(128)[: rng.integers(8, 25)]
        hashes[i] = hashes[i - 30] ^ np.packbits(np.isin(np.arange(128), flips))
        levels[i] = np.clip(levels[i - 30] + rng.integers(-16, 17, 192), 0, 255)
        levels[i, : rng.integers(0, 192)] = levels[i - 30, :1]
    levels[30:45] = levels[:15]
    expected = [
        (i, j)
        for i in range(60)
        for j in range(i + 1, 60)
        if sum((int(a) ^ int(b)).bit_count() for a, b in zip(hashes[i], hashes[j], strict=True))
        <= 16
        and np.mean([abs(int(a) - int(b)) for a, b in zip(levels[i], levels[j], strict=True)]) <= 5
    ]
    assert 3 < len(expected) < 15
    assert duplicates.near_pairs(hashes, levels).tolist() == [list(pair) for pair in expected]


def test_where_everything_looks_alike_pairs_stay_few():
    pairs = duplicates.near_pairs(np.zeros((50, 16), np.uint8), np.zeros((50, 192), np.uint8))
    assert len(pairs) <= 50 * duplicates.NEIGHBOURS and len(np.unique(pairs)) == 50


@pytest.mark.parametrize("quality, scale", [(10, 1), (60, 0.5), (95, 0.34)])
def test_copies_are_recognised_after_encoding_and_resizing(quality, scale):
    """At most 5 bits and 3.8 levels apart here; the bounds, 16 bits and 5 levels, come from photos."""
    for seed in range(20):
        image, buffer = scene(seed), io.BytesIO()
        size = [round(side * scale) for side in image.size]
        image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
        both = [duplicates.signature(np.asarray(i)) for i in (image, Image.open(buffer))]
        hashes, levels = (np.stack(part) for part in zip(*both, strict=True))
        assert duplicates.near_pairs(hashes, levels).tolist() == [[0, 1]]


def test_digits_are_quick_and_quiet(tmp_path, said):
    manifest = carve(digits())
    said.clear()
    findings = examined(manifest, tmp_path)
    assert found(findings, ["error", "warning"]) == {} and said == []
    assert set(found(findings)) == {"grey"}


def test_advice_for_large_photos(tmp_path):
    def read(file):  # one pixel shown many times: as large as a phone's photo, at no cost
        return np.broadcast_to(np.uint8(int(file)), (3024, 4032, 3))

    split = Split(("1", "2"), np.array([0, 1], np.int32))
    manifest = Manifest("phone", ("a", "b"), {"train": split}, read)
    findings = examined(manifest, tmp_path, size=224)
    text = "\n".join(findings.training)
    # 20 * 224 / 3024 = 1.48
    assert "median image 4032 x 3024: at 224 px a mark of 20 pixels is 1.5" in text
    assert (
        "size=448 keeps more, at 4 times the cost" in text
        and "cached as 512 x 512 pixels: 2 MB" in text
    )
    assert "size=448" not in "\n".join(examined(manifest, tmp_path, size=448).training)


class Pictures(html.parser.HTMLParser):
    """Checks that tags close in order; collects sources of images and text."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.text, self.links = [], [], "", []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "img":
            self.sources.append(values["src"])
        self.links += [v for k, v in attrs if k in ("href", "src") and not v.startswith("data:")]
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_is_self_contained_and_shows_pairs_side_by_side(root):
    shutil.copy(root / "test/a/0.jpg", root / f"{NEW}.jpg")
    (root / "train/b/<b>&.jpg").write_bytes(b"")
    manifest = load(root)
    findings = examine(root)
    page.write(root.parent / "page.html", findings, manifest)
    text = (root.parent / "page.html").read_text()
    parsed = Pictures()
    parsed.feed(text)
    parsed.close()
    assert not parsed.open and not parsed.links
    assert "@import" not in text and "url(" not in text and "prefers-color-scheme: dark" in text
    assert "train/b/<b>&.jpg" in parsed.text and "the file is empty" in parsed.text
    # The two of the pair, next to each other, are the same picture; then one of each class.
    assert len(parsed.sources) == 2 + 4 and parsed.sources[0] == parsed.sources[1]
    assert f"{NEW}.jpg" in parsed.text and "test, a" in parsed.text
    for source in parsed.sources:
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert max(picture.size) == 160


# fgvc check


@pytest.fixture
def check(monkeypatch, capsys):
    """check(*arguments) -> (exit status, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fgvc", "check", *map(str, arguments)])
        status = cli.main()
        return (status, *capsys.readouterr())

    return run


def test_check_command(check, root, tmp_path):
    status, out, err = check(root)
    assert status == 0 and err == ""
    assert out.splitlines()[-1] == "Ready for training." and "24 train, 8 val, 12 test" in out
    (root / "train/a/0.jpg").write_bytes(b"")
    status, out, err = check(root, f"--html={tmp_path}/p.html", f"--json={tmp_path}/p.json")
    assert status == 2 and err == "error: Training stops: 1 kind of error.\n"
    assert "train/a/0.jpg (train, a): the file is empty" in out
    assert (tmp_path / "p.html").stat().st_size > 1000
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["items"][0]["cases"][0]["files"] == ["train/a/0.jpg"]
    status, out, err = check(root, "--on-bad=skip")
    assert status == 0 and "leaves these images of train out: 1." in out


def test_check_refuses_what_it_does_not_know(check, root, tmp_path):
    status, _, err = check(tmp_path / "nowhere")
    assert status == 2 and "nowhere does not exist" in err
    status, _, err = check(root, "--config.data.cnvas=3")
    assert status == 2 and "did you mean 'canvas'" in err
    status, _, err = check(root, "--config.data.canvas=big")
    assert status == 2 and "'big' is no int" in err
    status, _, err = check(root, f"--html={tmp_path}/no/p.html")
    assert status == 2 and f"{tmp_path}/no" in err


# Before every training


def test_training_stops_or_leaves_out(root, tmp_path, monkeypatch, caplog):
    """Up to where the phases would begin."""
    config = tiny.pipeline()
    config.data.source, config.data.root = "folder", str(root)
    config.phases = ("finetune",)
    begun = []
    monkeypatch.setattr(run, "_phases", lambda _, manifest, *__: begun.append(manifest))
    monkeypatch.setattr(run.summary, "lines", lambda *_: [])
    (root / "train/a/0.jpg").write_bytes(b"")
    shutil.rmtree(root / "val/b")
    with pytest.raises(UserError, match=r"data in .* is not fit(.|\n)*train/a/0.jpg \(train, a\)"):
        run.run(config, tmp_path / "run")
    assert not begun and "warning: 1 of 4 classes have no val image: b" in caplog.messages
    assert "train/a/0.jpg" in (tmp_path / "run/data.html").read_text()
    assert json.loads((tmp_path / "run/data.json").read_text())["exclude"]

    config.data.on_bad = "skip"
    run.run(config, tmp_path / "run")
    (manifest,) = begun
    assert manifest.excluded == {"train/a/0.jpg": "the file is empty"}
    assert "train/a/0.jpg" not in manifest.splits["train"].files
    saved = json.loads((tmp_path / "run/manifest.json").read_text())
    assert saved["excluded"] == manifest.excluded and len(saved["splits"]["train"]) == 23

    # Of a run that has begun nothing is touched where the images are others now.
    (tmp_path / "run/finetune").mkdir()
    (tmp_path / "run/finetune/model.json").write_text("{}")
    before = (tmp_path / "run/data.json").read_bytes()
    (root / "train/a/1.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="the images or labels have changed"):
        run.run(config, tmp_path / "run")
    assert (tmp_path / "run/data.json").read_bytes() == before


def test_a_dry_run_looks_at_the_images_that_it_takes_only(root, tmp_path, monkeypatch):
    for i in range(70):
        shutil.copy(root / "train/a/0.jpg", root / f"train/a/copy{i}.jpg")
    config = tiny.pipeline()
    config.data.source, config.data.root = "folder", str(root)
    config.phases = ("finetune",)
    taken, read = [], []
    plain = images.read_in

    def counting(folder, file):
        read.append(file)
        return plain(folder, file)

    monkeypatch.setattr("fgvc_jax.data.sources.folders.read_in", counting)
    monkeypatch.setattr(run, "_phases", lambda _, manifest, *__: taken.append(manifest) or {})
    monkeypatch.setattr(run.summary, "lines", lambda *_: [])
    config.data.on_bad = "skip"
    run.run(config, tmp_path / "run", dry_run=True)
    files = [f for split in taken[0].splits.values() for f in split.files]
    assert sorted(read) == sorted(files) and len(files) < 50


def test_a_dry_run_is_told_no_warnings(root, tmp_path, monkeypatch, caplog):
    config = tiny.pipeline()
    config.data.source, config.data.root = "folder", str(root)
    config.phases = ("finetune",)
    monkeypatch.setattr(run, "_phases", lambda *_: {})
    monkeypatch.setattr(run.summary, "lines", lambda *_: [])
    shutil.rmtree(root / "val/b")
    run.run(config, tmp_path / "run", dry_run=True)
    assert "warning" not in caplog.text
    assert not list((tmp_path / "run").rglob("data.*"))


def test_two_processes_at_once_read_the_images_once(root):
    """Through the lock: the second one finds what the first has written."""
    program = (
        "import sys; from fgvc_jax.data import doctor; from fgvc_jax.data.sources import folder\n"
        "import dataclasses, pathlib\n"
        "m = folder(sys.argv[1])\n"
        "def read(f): sys.stdout.write(f + chr(10)); return m.read(f)\n"
        "counting = dataclasses.replace(m, read=read)\n"
        "doctor.collect(counting, sys.argv[2])"
    )
    command = [sys.executable, "-c", program, str(root), str(root.parent / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    read = [process.communicate()[0].split() for process in both]
    assert all(process.returncode == 0 for process in both)
    assert sorted(map(len, read)) == [0, 44]
