"""Several processes share the images; here threads stand in for them, that meet where processes would."""

import dataclasses
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from fgvc_jax import mesh
from fgvc_jax.data import doctor, feed, shares
from fgvc_jax.data.shares import Share
from fgvc_jax.data.sources import folder
from fgvc_jax.data.split import carve
from fgvc_jax.errors import UserError

COUNT = 60


class Processes:
    """Runs a function in P threads, between which `mesh.from_all` exchanges as between P processes."""

    def __init__(self, count, monkeypatch):
        self.count, self.sent, self.here = count, [None] * count, threading.local()
        self.barrier = threading.Barrier(count, timeout=20)
        monkeypatch.setattr(mesh, "from_all", self.from_all)

    def from_all(self, x):
        assert x.dtype.itemsize < 8  # which JAX would narrow
        self.sent[self.here.number] = x.copy()
        self.barrier.wait()
        found = np.stack(self.sent)  # which fails unless all have sent alike
        self.barrier.wait()
        return found

    def run(self, function):
        """[function(Share(p, P))]."""

        def one(number):
            self.here.number = number
            return function(Share(number, self.count))

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(one, range(self.count)))


@pytest.fixture
def photos(tmp_path):
    """60 photos of noise of several sizes; two are equal, one is a smaller copy of another, one is broken."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos"
    for i in range(COUNT):
        h, w = rng.integers(36, 70, 2)
        path = root / "abc"[i % 3] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        coarse.resize((w, h), Image.Resampling.BICUBIC).save(path)
    shutil.copy(root / "a" / "00.png", root / "b" / "01.png")
    with Image.open(root / "c" / "02.png") as image:
        image.resize((35, 33), Image.Resampling.LANCZOS).save(root / "a" / "57.png")
    return root


def counting(root):
    """The data, and the files that are read of them from now on."""
    manifest, seen = carve(folder(root), val_fraction=0, test_fraction=0), []

    def read(file):
        seen.append(file)
        return manifest.read(file)

    return dataclasses.replace(manifest, read=read), seen


def look_at(root, directory, processes, **options):
    """By each process: (its look, the files that it has read)."""

    def one(share):
        manifest, seen = counting(root)
        place = directory(share.process) if callable(directory) else directory
        return doctor.look(manifest, place, resize=32, canvas=40, share=share, **options), seen

    return processes.run(one)


def check_equal(facts, expected):
    assert facts.files == expected.files and facts.unreadable == expected.unreadable
    for ours, theirs in zip(facts[1:-1], expected[1:-1], strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7, 64])
def test_shares_are_equal_also_of_a_run_of_files_and_of_every_nth(processes):
    """The names of cached canvases carry nothing but the count, so that the rule must never change."""
    owner = shares.owners(20_000, processes)
    assert owner.dtype == np.int32
    rule = [(i * 2654435769 % 2**32) * processes // 2**32 for i in range(20_000)]
    assert owner.tolist() == rule
    for part in (
        owner,
        owner[3000:9000],
        *(owner[first::n] for n in (2, 3, 4, 5) for first in (0, 1)),
    ):
        counts = np.bincount(part, minlength=processes)
        assert np.ptp(counts) <= 12 and len(counts) == processes


@pytest.mark.parametrize("to_all", [True, False])
def test_rows_of_others_are_filled_in_a_block_at_a_time(monkeypatch, tmp_path, to_all):
    owner = shares.owners(101, 3)
    rng = np.random.default_rng(0)
    wholes = [
        rng.integers(0, 2**16, 101).astype(np.uint16),
        rng.integers(0, 2**31, (101, 2)).astype(np.int32),
        rng.integers(0, 256, (101, 5, 4), np.uint8),
    ]
    monkeypatch.setattr(shares, "BLOCK", 300)

    def one(share):
        filled = [
            np.where((owner == share.process).reshape(-1, *[1] * (w.ndim - 1)), w, 0)
            for w in wholes
        ]
        filled[2] = np.memmap(tmp_path / str(share.process), np.uint8, "w+", shape=wholes[2].shape)
        filled[2][owner == share.process] = wholes[2][owner == share.process]
        for array in filled:
            shares.fill(array, owner, share, to_all)
        return filled

    for process, filled in enumerate(Processes(3, monkeypatch).run(one)):
        for array, whole in zip(filled, wholes, strict=True):
            known = np.full(101, True) if to_all or process == 0 else owner == process
            np.testing.assert_array_equal(array[known], whole[known])
            assert not array[~known].any()


def test_what_each_process_says_is_heard_by_all(monkeypatch):
    words = [b"", b"one", b"\0two\0"]
    heard = Processes(3, monkeypatch).run(lambda share: shares.of_all(words[share.process], share))
    assert heard == [words] * 3


@pytest.mark.parametrize("processes", [3, 4])
@pytest.mark.parametrize("shared", [True, False])
def test_each_process_reads_its_share_and_all_know_the_same(
    photos, tmp_path, monkeypatch, processes, shared
):
    """As one process: the facts, near pairs among them, and every canvas, cached here or not."""
    (photos / "b" / "04.png").write_bytes(b"broken")
    manifest, seen = counting(photos)
    whole = doctor.look(manifest, tmp_path / "one", resize=32, canvas=40, on_bad="skip")
    assert len(whole.facts.near) and len(whole.facts.unreadable) == 1 and len(seen) == COUNT
    files = [file for file in whole.facts.files if file != "b/04.png"][::-1]
    pixels, sizes = whole.canvases(files).take(np.arange(len(files)))

    threads = Processes(processes, monkeypatch)
    place = tmp_path / "several" if shared else lambda process: tmp_path / f"several{process}"
    found = look_at(photos, place, threads, on_bad="skip")
    owner = shares.owners(COUNT, processes)
    for process, (look, read) in enumerate(found):
        mine = [file for file, own in zip(whole.facts.files, owner, strict=True) if own == process]
        assert sorted(read) == mine and COUNT / processes - 3 < len(mine) < COUNT / processes + 3
        assert len(look.stored.pixels) == len(mine)
        check_equal(look.facts, whole.facts)
        read.clear()
        ours = look.canvases(files)
        np.testing.assert_array_equal(ours.sizes, sizes)
        for at in (np.arange(len(files)), np.arange(5)):
            for a, b in zip(ours.take(at), (pixels[at], sizes[at]), strict=True):
                np.testing.assert_array_equal(a, b)
        assert not set(read) & set(mine)
    # Known facts and canvases: only the broken one is tried again, by its owner.
    tried = [read for _, read in look_at(photos, place, threads, on_bad="skip")]
    assert sorted(file for read in tried for file in read) == ["b/04.png"]


def test_what_one_process_lacks_all_read_again(photos, tmp_path, monkeypatch):
    threads = Processes(3, monkeypatch)

    def place(process):
        return tmp_path / str(process)

    first = look_at(photos, place, threads)
    next((tmp_path / "1").glob("*-facts*")).unlink()
    again = look_at(photos, place, threads)
    assert sum(len(read) for _, read in again) == COUNT
    check_equal(again[1][0].facts, first[0][0].facts)
    shutil.rmtree(next(p for p in (tmp_path / "2").iterdir() if p.is_dir()))  # its canvases alone
    read = [len(read) for _, read in look_at(photos, place, threads)]
    assert read[:2] == [0, 0] and read[2] == (shares.owners(COUNT, 3) == 2).sum()


def test_an_image_that_can_be_read_again_is_read_and_cached_by_all(photos, tmp_path, monkeypatch):
    """Its file is the same by size and time; what one and several processes have cached of it is void."""
    path = photos / "b" / "04.png"
    data, stat = path.read_bytes(), path.stat()

    def write(content):
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    write(b"\0" * len(data))
    look = doctor.look(counting(photos)[0], tmp_path / "c", resize=32, canvas=40, on_bad="skip")
    assert list(look.facts.unreadable.values())
    threads = Processes(3, monkeypatch)
    manifest = counting(photos)[0]
    for process in range(3):  # as three processes leave them: without a look at the complete ones
        shutil.copytree(tmp_path / "c", tmp_path / str(process))
        for old in [p for p in (tmp_path / str(process)).iterdir() if p.is_dir()]:
            shutil.rmtree(old)
    look_at(photos, lambda process: tmp_path / str(process), threads, on_bad="skip")
    write(data)
    for process in range(3):
        for old in [p for p in (tmp_path / "c").iterdir() if p.is_dir()]:
            shutil.copytree(old, tmp_path / str(process) / old.name)
    for look, _ in look_at(photos, lambda process: tmp_path / str(process), threads, on_bad="skip"):
        assert not look.facts.unreadable
        pixels, sizes = look.canvases(("b/04.png",)).take(np.array([0]))
        expected = doctor.look(manifest, tmp_path / "new", resize=32, canvas=40)
        wanted, size = expected.canvases(("b/04.png",)).take(np.array([0]))
        np.testing.assert_array_equal(pixels, wanted)
        np.testing.assert_array_equal(sizes, size)


def test_canvases_of_one_process_serve_several(photos, tmp_path, monkeypatch):
    doctor.look(counting(photos)[0], tmp_path, resize=32, canvas=40)
    found = look_at(photos, tmp_path, Processes(3, monkeypatch))
    assert not any(read for _, read in found)
    assert all(len(look.stored.pixels) == COUNT for look, _ in found)


def test_no_room_is_a_matter_of_each_process_and_of_all_that_share_a_disk(
    photos, tmp_path, monkeypatch
):
    """Room for 30 of 60 canvases: for a share of a third, but not for three of them in one folder."""
    usage = shutil.disk_usage(tmp_path)._replace(free=30 * 40 * 40 * 3)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    threads = Processes(3, monkeypatch)
    apart = look_at(photos, lambda process: tmp_path / str(process), threads)
    assert sum(len(look.stored.pixels) for look, _ in apart) == COUNT
    together = look_at(photos, tmp_path / "shared", threads)
    assert not any(len(look.stored.pixels) for look, _ in together)
    check_equal(together[2][0].facts, apart[0][0].facts)


def test_processes_that_see_other_files_are_told(photos, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(photos, other)
    (other / "a" / "03.png").unlink()

    def one(share):
        manifest, _ = counting(other if share.process == 1 else photos)
        manifest = dataclasses.replace(manifest, name="photos")
        return doctor.look(manifest, tmp_path / "c", resize=32, share=share)

    with pytest.raises(UserError, match="process 1 sees other images of photos"):
        Processes(2, monkeypatch).run(one)


@pytest.mark.parametrize("devices", [[0, 0, 0, 0], [0, 0, 1, 1], [1, 0, 2, 0, 1], [0, 1, 2, 3]])
@pytest.mark.parametrize("count", [1, 5, 101])
def test_every_image_has_a_slot_of_its_own_on_a_device_of_its_owner(devices, count):
    devices = np.array(devices)
    owner = np.random.default_rng(count).integers(0, devices.max() + 1, count).astype(np.int32)
    slots, part = feed.slots_of(owner, devices)
    assert slots.dtype == np.int32 and len(set(slots.tolist())) == count
    np.testing.assert_array_equal(devices[slots // part], owner)
    # No device could hold fewer, and what is left free stands at its end.
    assert part == max(
        -(-(owner == p).sum() // (devices == p).sum()) for p in set(devices.tolist())
    )
    for device in range(len(devices)):
        there = np.sort(slots[slots // part == device] % part)
        np.testing.assert_array_equal(there, np.arange(len(there)))
    if not devices.any():
        np.testing.assert_array_equal(slots, np.arange(count))
