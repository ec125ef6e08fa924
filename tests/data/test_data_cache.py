"""The canvas cache: right pixels, decoded once, rebuilt on change, never half-written."""

import dataclasses
import functools
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fgvc_jax.data import cache, doctor
from fgvc_jax.data.manifest import Manifest, Split
from fgvc_jax.data.sources import digits, folder
from fgvc_jax.data.sources.images import read_in
from fgvc_jax.data.split import carve
from fgvc_jax.errors import UserError
from fgvc_jax.images import protocols
from fgvc_jax.images.augment import eval_view
from fgvc_jax.images.view import View


@pytest.fixture
def photos(tmp_path):
    """Noise images, high, wide and small, of two classes, all in train."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    for i, (h, w) in enumerate([(50, 20), (20, 50), (7, 9), (40, 40), (1, 90), (16, 16)]):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)).save(path)
    return root


def build(manifest, split, side, directory):
    """The canvases of a split."""
    seen = doctor.look(manifest, directory, resize=side, canvas=side, feed="streamed")
    return seen.canvases(manifest.splits[split].files)


def train_only(root):
    return carve(folder(root), val_fraction=0, test_fraction=0)


def counting(manifest):
    seen = []

    def read(file):
        seen.append(file)
        return manifest.read(file)

    return dataclasses.replace(manifest, read=read), seen


def test_canvases_hold_each_image_at_the_top_left_shrunk_only_if_too_long(photos, tmp_path):
    manifest = train_only(photos)
    pixels, sizes, *_ = build(manifest, "train", 40, tmp_path / "c")
    files = manifest.splits["train"].files
    assert pixels.shape == (6, 40, 40, 3) and pixels.dtype == np.uint8
    assert sizes.dtype == np.int32 and isinstance(pixels, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        pixels[0, 0, 0, 0] = 1
    for file, canvas, (h, w) in zip(files, pixels, sizes.tolist(), strict=True):
        image = Image.open(photos / file)
        if max(image.size) > 40:
            scale = 40 / max(image.size)
            size = [max(1, round(s * scale)) for s in image.size]
            image = image.resize(size, Image.Resampling.LANCZOS)
        assert (w, h) == image.size
        np.testing.assert_array_equal(canvas[:h, :w], np.asarray(image))
        assert not canvas[h:].any() and not canvas[:, w:].any()


def test_second_build_decodes_nothing_and_labels_do_not_matter(photos, tmp_path, said):
    manifest, seen = counting(train_only(photos))
    said.clear()
    first = build(manifest, "train", 32, tmp_path / "c")
    assert sorted(seen) == sorted(manifest.splits["train"].files)  # each once
    assert "6 images" in said[0] and "0.0 MB" in said[0]
    seen.clear()
    said.clear()
    train = manifest.splits["train"]
    other = dataclasses.replace(manifest, splits={"train": train._replace(labels=1 - train.labels)})
    second = build(other, "train", 32, tmp_path / "c")
    assert not seen and not said
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.sizes, second.sizes)


def test_changed_file_other_canvas_and_other_files_are_other_caches(photos, tmp_path):
    manifest, seen = counting(train_only(photos))
    build(manifest, "train", 32, tmp_path / "c")
    one = photos / manifest.splits["train"].files[0]
    Image.new("RGB", (50, 20), "red").save(one)
    os.utime(one, ns=(1, 1))
    seen.clear()
    changed = build(manifest, "train", 32, tmp_path / "c")
    assert len(seen) == 6 and (changed.pixels[0, 0, 0] == (255, 0, 0)).all()
    build(manifest, "train", 24, tmp_path / "c")
    assert len(seen) == 12
    one.unlink()
    build(counting(train_only(photos))[0], "train", 32, tmp_path / "c")
    complete = [p for p in (tmp_path / "c").iterdir() if p.is_dir()]
    assert len(complete) == 4


def test_digits_are_keyed_by_their_pixels(tmp_path, said):
    manifest = carve(digits(), val_fraction=0.5, test_fraction=0.45)
    build(manifest, "train", 8, tmp_path)
    said.clear()
    pixels, sizes = build(manifest, "train", 8, tmp_path).take(np.arange(90))
    assert not said and (sizes == 8).all()
    for file, canvas in zip(manifest.splits["train"].files, pixels, strict=True):
        np.testing.assert_array_equal(canvas, manifest.read(file))
    brighter = dataclasses.replace(manifest, read=lambda f: manifest.read(f) // 2)
    build(brighter, "train", 8, tmp_path)
    assert said  # written anew


def test_sizes_come_from_headers_and_a_canvas_is_no_larger_than_the_longest_image(photos):
    manifest, seen = counting(train_only(photos))
    (photos / "a" / "0.png").write_bytes(b"no image")
    sizes = cache.image_sizes(manifest, manifest.splits["train"].files)
    assert not seen and sizes.tolist() == [[0, 0], [7, 9], [1, 90], [20, 50], [40, 40], [16, 16]]
    assert cache.canvas_side(sizes, resize=32) == 96  # 90, in steps of 8
    assert cache.canvas_side(sizes, resize=32, canvas=48) == 48
    assert cache.canvas_side(sizes, resize=32, canvas=512) == 96


def test_a_canvas_suits_99_of_100_images_and_aspects_up_to_2():
    """By an exact count: how many are shrunk below the resized size."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(300, 1500, (1000, 2))
    for settings, target in (({"resize": 512}, 512), ({"resize": 256, "squash": (600, 300)}, 600)):
        side = cache.canvas_side(sizes, **settings)
        assert side % 8 == 0

        def short(side, target=target):
            scale = np.minimum(1, side / sizes.max(1))  # of an image on its canvas
            gentle = sizes.max(1) <= 2 * sizes.min(1)
            return (gentle & (scale < 1) & (scale * sizes.min(1) < target)).sum()

        assert short(side) <= 10 < short(side - 40)
    assert cache.canvas_side(sizes, resize=64) == 512
    assert cache.canvas_side(np.zeros((0, 2), int), resize=512) == 1024
    assert cache.canvas_side(np.zeros((0, 2), int), resize=256) == 512
    assert cache.canvas_side(np.array([[427, 640]] * 3), resize=512) == 640


@pytest.mark.parametrize("shape", [(427, 640), (640, 427), (500, 375)])
@pytest.mark.parametrize("name", ["shorter512_448", "fgvc448", "pim448", "bcnn448"])
def test_a_view_through_the_canvas_is_the_one_of_the_original(name, shape, tmp_path):
    """Against Pillow's resize and crop. With canvas=512 a 427 x 640 photo is off by tens of levels."""
    keys = protocols.PROTOCOLS[name]
    size, resize, squash = keys["size"], keys.get("resize", 0), keys.get("squash", ())
    h, w = shape
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)).save(tmp_path / "a.png")
    manifest = Manifest(
        "one",
        ("x", "y"),
        {"train": Split(("a.png",), np.array([0], np.int32))},
        functools.partial(read_in, str(tmp_path)),
        str(tmp_path),
    )
    if squash:
        target = squash
    else:
        target = (resize * h // min(h, w), resize * w // min(h, w))
    image = Image.open(tmp_path / "a.png").resize(target[::-1], Image.Resampling.BILINEAR)
    top, left = (round((side - size) / 2) for side in target)
    wanted = np.asarray(image.crop((left, top, left + size, top + size)), float)
    view = View(size, resize, (0.0,) * 3, (1.0,) * 3, squash=squash)

    def error(canvas):
        seen = doctor.look(
            manifest, tmp_path / "c", resize=resize, squash=squash, canvas=canvas, feed="streamed"
        )
        pixels, sizes = seen.canvases(("a.png",)).take(np.array([0]))
        return np.abs(255 * np.asarray(eval_view(pixels[0], sizes[0], view)) - wanted).max()

    # Pillow rounds to whole grey levels after each of its two passes.
    assert error(canvas=0) <= 1.01
    if max(shape) > 512:
        assert error(canvas=512) > 20


def test_one_pass_gives_facts_and_canvases_and_the_second_look_reads_nothing(photos, tmp_path):
    manifest, seen = counting(train_only(photos))
    files = manifest.splits["train"].files
    first = doctor.look(manifest, tmp_path / "c", resize=32)
    assert sorted(seen) == sorted(files) and first.side == 96
    seen.clear()
    again = doctor.look(manifest, tmp_path / "c", resize=32)
    assert not seen
    # Splits are rows of the one file, in their own order.
    for part in (files[::-1], files[1:3], (files[4], files[0])):
        pixels, sizes = again.canvases(part).take(np.arange(len(part)))
        for file, canvas, (h, w) in zip(part, pixels, sizes.tolist(), strict=True):
            np.testing.assert_array_equal(canvas[:h, :w], manifest.read(file))
        decoded = doctor.look(manifest, tmp_path / "c", resize=32, feed="decoded").canvases(part)
        assert not len(decoded.pixels) and decoded.side == 96
        for ours, theirs in zip(decoded.take(np.arange(len(part))), (pixels, sizes), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert sum(p.is_dir() for p in (tmp_path / "c").iterdir()) == 1


def test_facts_that_are_known_are_not_made_again_for_another_side(photos, tmp_path):
    manifest, seen = counting(train_only(photos))
    facts = doctor.collect(manifest, tmp_path / "c")
    seen.clear()
    look = doctor.look(manifest, tmp_path / "c", resize=32, canvas=24)
    assert len(seen) == 6 and look.side == 24
    for ours, theirs in zip(look.facts, facts, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_all_unreadable_images_are_named_and_with_skip_the_rest_have_canvases(photos, tmp_path):
    data = (photos / "a" / "0.png").read_bytes()
    for i in range(12):
        (photos / "b" / f"half{i:02d}.png").write_bytes(data[: len(data) // 2])
    manifest, seen = counting(train_only(photos))
    stopped = doctor.look(manifest, tmp_path / "c", resize=32)
    assert len(stopped.facts.unreadable) == 12 and not len(stopped.stored.pixels)
    assert not [p for p in (tmp_path / "c").iterdir() if p.is_dir()]
    seen.clear()
    doctor.look(manifest, tmp_path / "c", resize=32)
    assert len(seen) <= 12  # tried again, one at least; nothing that could be read
    skipped = doctor.look(manifest, tmp_path / "c", resize=32, on_bad="skip")
    left = doctor.leave_out(manifest, doctor.judge(manifest, skipped.facts))
    files = left.splits["train"].files
    assert len(files) == 6
    pixels, sizes = skipped.canvases(files).take(np.arange(6))
    for file, canvas, (h, w) in zip(files, pixels, sizes.tolist(), strict=True):
        np.testing.assert_array_equal(canvas[:h, :w], manifest.read(file))
    assert (
        skipped.side == 96
    )  # with or without the bad ones: a run that goes on has the same canvases
    assert doctor.look(manifest, tmp_path / "c", resize=32, on_bad="skip").side == 96


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_an_image_that_is_unreadable_for_once_leaves_no_black_canvas(photos, tmp_path, on_bad):
    manifest, file = train_only(photos), "b/1.png"

    def fails(name):
        if name == file:
            raise UserError(f"{name}: the disk did not answer")
        return manifest.read(name)

    doctor.look(manifest, tmp_path / "c", resize=32, canvas=24, on_bad=on_bad)
    with pytest.raises(
        UserError, match=rf"1 images that could be read before .*{file}.*start again"
    ):
        failing = dataclasses.replace(manifest, read=fails)
        doctor.look(failing, tmp_path / "c", resize=32, canvas=32, on_bad=on_bad)
    look = doctor.look(manifest, tmp_path / "c", resize=32, canvas=32, on_bad=on_bad)
    pixels, _ = look.canvases([file]).take(np.arange(1))
    assert look.facts.unreadable == {} and pixels.any()


def test_a_disk_without_room_is_no_error_for_the_automatic_feed(
    photos, tmp_path, monkeypatch, said
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    manifest = train_only(photos)
    seen = doctor.look(manifest, tmp_path / "c", resize=32, canvas=32)
    assert not len(seen.stored.pixels)
    files = manifest.splits["train"].files
    pixels, sizes = seen.canvases(files).take(np.arange(6))
    for file, canvas, (h, w) in zip(files, pixels, sizes.tolist(), strict=True):
        np.testing.assert_array_equal(canvas[:h, :w], cache.fit(manifest.read(file), 32))
    assert any("no room" in line for line in said)


def test_interrupted_write_is_not_taken_for_a_cache(photos, tmp_path):
    manifest = train_only(photos)

    def interrupted(file):
        if file.endswith("5.png"):
            raise KeyboardInterrupt
        return manifest.read(file)

    broken = dataclasses.replace(manifest, read=interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(broken, "train", 32, tmp_path / "c")
    manifest, seen = counting(manifest)
    build(manifest, "train", 32, tmp_path / "c")
    assert len(seen) == 6
    (done,) = [p for p in (tmp_path / "c").iterdir() if p.is_dir()]
    assert not done.name.endswith("partial")


def test_full_disk_is_told_before_writing(photos, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    manifest, seen = counting(train_only(photos))
    with pytest.raises(UserError, match="0 MB free"):
        build(manifest, "train", 32, tmp_path / "c")
    assert not seen


BUILDER = """
import sys, time
from fgvc_jax.data import doctor
from fgvc_jax.data.sources import folder
from fgvc_jax.data.split import carve
import dataclasses
root, out, log = sys.argv[1:]
manifest = carve(folder(root), val_fraction=0, test_fraction=0)
def slow(file):
    time.sleep(0.2)
    with open(log, "a") as f:
        f.write(file + "\\n")
    return manifest.read(file)
slowly = dataclasses.replace(manifest, read=slow)
seen = doctor.look(slowly, out, resize=32, canvas=32)
print(int(seen.canvases(manifest.splits["train"].files).pixels.sum(dtype="int64")))
"""


def test_two_processes_at_once_decode_once_and_agree(photos, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", BUILDER, str(photos), str(tmp_path / "c"), str(log)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [p.communicate(timeout=120)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert sums[0] == sums[1] != ""
    assert len(log.read_text().split()) == 6
