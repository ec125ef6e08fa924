"""The canvas cache: right pixels, decoded once, rebuilt on change, never half-written."""

import dataclasses
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fgvc_jax.data import cache
from fgvc_jax.data.sources import digits, folder
from fgvc_jax.data.split import carve
from fgvc_jax.errors import UserError


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
    pixels, sizes = cache.build(manifest, "train", 40, tmp_path / "c")
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
    first = cache.build(manifest, "train", 32, tmp_path / "c")
    assert sorted(seen) == sorted(manifest.splits["train"].files)  # each once
    assert "6 train images" in said[0] and "0.0 MB" in said[0]
    seen.clear()
    said.clear()
    train = manifest.splits["train"]
    other = dataclasses.replace(manifest, splits={"train": train._replace(labels=1 - train.labels)})
    second = cache.build(other, "train", 32, tmp_path / "c")
    assert not seen and not said
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.sizes, second.sizes)


def test_changed_file_other_canvas_and_other_files_are_other_caches(photos, tmp_path):
    manifest, seen = counting(train_only(photos))
    cache.build(manifest, "train", 32, tmp_path / "c")
    one = photos / manifest.splits["train"].files[0]
    Image.new("RGB", (50, 20), "red").save(one)
    os.utime(one, ns=(1, 1))
    seen.clear()
    changed = cache.build(manifest, "train", 32, tmp_path / "c")
    assert len(seen) == 6 and (changed.pixels[0, 0, 0] == (255, 0, 0)).all()
    cache.build(manifest, "train", 24, tmp_path / "c")
    assert len(seen) == 12
    one.unlink()
    cache.build(counting(train_only(photos))[0], "train", 32, tmp_path / "c")
    complete = [p for p in (tmp_path / "c").iterdir() if p.is_dir()]
    assert len(complete) == 4


def test_digits_are_keyed_by_their_pixels(tmp_path, said):
    manifest = carve(digits(), val_fraction=0.5, test_fraction=0.45)
    assert cache.canvas_size(manifest, 64) == 8
    cache.build(manifest, "train", 8, tmp_path)
    said.clear()
    pixels, sizes = cache.build(manifest, "train", 8, tmp_path)
    assert not said and (sizes == 8).all()
    for file, canvas in zip(manifest.splits["train"].files, pixels, strict=True):
        np.testing.assert_array_equal(canvas, manifest.read(file))
    brighter = dataclasses.replace(manifest, read=lambda f: manifest.read(f) // 2)
    cache.build(brighter, "train", 8, tmp_path)
    assert said  # written anew


def test_canvas_size_is_the_longest_side_of_all_splits_in_steps_of_8(photos):
    manifest = folder(photos)
    manifest = carve(manifest, val_fraction=0.34, test_fraction=0.34)
    assert set(manifest.splits) == {"train", "val", "test"}
    manifest, seen = counting(manifest)
    assert cache.canvas_size(manifest, 512) == 96  # 90, rounded up
    assert cache.canvas_size(manifest, 48) == 48
    assert not seen  # headers only


def test_all_unreadable_images_come_in_one_message_and_nothing_is_left(photos, tmp_path):
    data = (photos / "a" / "0.png").read_bytes()
    for i in range(12):
        (photos / "b" / f"half{i:02d}.png").write_bytes(data[: len(data) // 2])
    (photos / "a" / "zero.jpg").touch()
    manifest = train_only(photos)
    with pytest.raises(UserError) as error:
        cache.build(manifest, "train", 32, tmp_path / "c")
    text = str(error.value)
    assert "13 of 19 train images cannot be read" in text
    assert (
        text.count("half") == 9
        and "zero.jpg: cannot be read as an image: the file is empty" in text
    )
    assert "and 3 more" in text
    assert not [p for p in (tmp_path / "c").iterdir() if p.is_dir()]
    assert cache.canvas_size(manifest, 512) == 96  # says nothing of them, and does not fail


def test_interrupted_write_is_not_taken_for_a_cache(photos, tmp_path):
    manifest = train_only(photos)

    def interrupted(file):
        if file.endswith("5.png"):
            raise KeyboardInterrupt
        return manifest.read(file)

    broken = dataclasses.replace(manifest, read=interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.build(broken, "train", 32, tmp_path / "c")
    manifest, seen = counting(manifest)
    cache.build(manifest, "train", 32, tmp_path / "c")
    assert len(seen) == 6
    (done,) = [p for p in (tmp_path / "c").iterdir() if p.is_dir()]
    assert not done.name.endswith("partial")


def test_full_disk_is_told_before_writing(photos, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    manifest, seen = counting(train_only(photos))
    with pytest.raises(UserError, match="0 MB free"):
        cache.build(manifest, "train", 32, tmp_path / "c")
    assert not seen


BUILDER = """
import sys, time
from fgvc_jax.data import cache
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
print(int(cache.build(slowly, "train", 32, out).pixels.sum(dtype="int64")))
"""


def test_two_processes_at_once_decode_once_and_agree(photos, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", BUILDER, str(photos), str(tmp_path / "c"), str(log)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [p.communicate(timeout=120)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert sums[0] == sums[1] != ""
    assert len(log.read_text().split()) == 6
