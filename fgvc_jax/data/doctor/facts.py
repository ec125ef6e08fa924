"""Facts about every image and its canvas, from one look at each; kept until a file changes."""

import dataclasses
import functools
import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from fgvc_jax.data import cache, shares
from fgvc_jax.data.doctor import transformed
from fgvc_jax.data.doctor.duplicates import equal_groups, near_pairs, signature
from fgvc_jax.data.doctor.image_file import describe, reason_of
from fgvc_jax.data.manifest import Manifest
from fgvc_jax.data.shares import Share
from fgvc_jax.errors import UserError
from fgvc_jax.files import atomic, locked

log = logging.getLogger(__name__)

FORMAT = 2  # raised whenever the same files would give other facts
CHUNK = 4096  # images in flight at a time
CHUNK_BYTES = 64 * 2**20  # of canvases, which bounds the memory


class Facts(NamedTuple):
    """About N images."""

    files: tuple[str, ...]  # N names, sorted
    stored: (
        np.ndarray
    )  # int32 [N, 2], height and width as the file's header says; 0 where it says nothing
    sizes: np.ndarray  # int32 [N, 2], height and width, upright; 0 where unreadable
    kinds: np.ndarray  # uint16 [N], bits by `image_file.KINDS`
    digests: np.ndarray  # uint8 [N, 16], of shape and pixels; equal only for equal images
    near: np.ndarray  # int64 [P, 2], rows of images that look the same but are not equal
    unreadable: dict[int, str]  # row -> reason


@dataclasses.dataclass(frozen=True)
class Look:
    """The result of one look at every image.

    Attributes:
      facts: about all images, unlabelled ones too.
      stored: the canvases of all of them; of these the labelled ones are cached, or this process's share of
        them, or none.
    """

    facts: Facts
    stored: cache.Canvases

    @property
    def side(self) -> int:
        """Of the canvases, pixels."""
        return self.stored.side

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {file: row for row, file in enumerate(self.facts.files)}

    def canvases(self, files: Sequence[str]) -> cache.Canvases:
        """Those of some of the images, such as a split's, in this order."""
        return self.stored.of(np.array([self._rows[file] for file in files], np.int64))


def alike(facts: Facts) -> list[tuple[str, str]]:
    """Pairs of files whose images are equal or look nearly so; of many equal ones each with the first."""
    pairs = [(facts.files[i], facts.files[j]) for i, j in facts.near.tolist()]
    for group in equal_groups(facts.digests, facts.sizes.min(1) > 0):
        pairs += [(facts.files[group[0]], facts.files[row]) for row in group[1:]]
    return pairs


def every_file(manifest: Manifest) -> tuple[str, ...]:
    """All files, labelled and not, sorted: however they are split, the order is the same."""
    splits = (split.files for split in manifest.splits.values())
    return tuple(sorted(file for files in (*splits, manifest.unlabelled) for file in files))


def collect(manifest: Manifest, directory: str | os.PathLike) -> Facts:
    """The facts alone, see `look`."""
    return _look(manifest, directory, None, "decoded", "stop", Share()).facts


def look(
    manifest: Manifest,
    directory: str | os.PathLike,
    *,
    resize: int,
    squash: Sequence[int] = (),
    canvas: int = 0,
    feed: str = "auto",
    on_bad: str = "stop",
    share: Share = Share(),  # noqa: B008  a tuple
) -> Look:
    """Facts and canvases of all images, from the directory or from reading every image once.

    They are kept under a key of the files (names, sizes, times of change; the pixels where they are not
    files), the canvases also of their side; labels and splits do not matter. What could not be read is tried
    again. Each file is written under another name and renamed when complete; of several runs at once
    one reads and the others wait. Per image some 350 bytes are held in memory, and 64 MiB of canvases.

    Each process of a run reads, decodes and keeps its own share, and the facts are exchanged, so that all
    have the same ones of all images. Canvases that one process has left there serve several, too.

    Args:
      manifest: the data set, whatever its splits.
      directory: where caches lie; made if missing.
      resize, squash, canvas: see `fgvc_jax.data.cache.canvas_side`.
      feed: config.data.feed. 'decoded' keeps no canvases; 'auto' neither, where the disk has no room.
      on_bad: config.data.on_bad. With 'stop' a process keeps no canvases where one of its images cannot be
        read, as its place would have to be made anew.
      share: which process this is, of how many; all must call this.

    Raises:
      UserError: a full disk, with another feed than 'auto'; processes that see different files; an image that
        could be read before.
    """

    def side_of(sizes: np.ndarray) -> int:
        return cache.canvas_side(sizes, resize=resize, squash=squash, canvas=canvas)

    return _look(manifest, directory, side_of, feed, on_bad, share)


def _look(manifest: Manifest, directory, side_of, feed: str, on_bad: str, share: Share) -> Look:
    directory = Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    files, bare = every_file(manifest), set(manifest.unlabelled)
    labelled = np.array([file not in bare for file in files], bool)
    owner = shares.owners(len(files), share.of)
    content = cache.key(manifest, files)
    path = directory / f"{manifest.name}-facts{FORMAT}-{content}.npz"
    ending = [f"-{n + 1}of{share.of}" if share.of > 1 else "" for n in range(share.of)]
    locks = [directory / f"{manifest.name}-{content}{end}.lock" for end in ending]
    locks[share.process].touch()
    lock = locked(locks[share.process])
    # While processes wait for each other, none may hold a lock that one of another run may wait for.
    whole, local = (lock, nullcontext()) if share.of == 1 else (nullcontext(), lock)
    with whole, tempfile.TemporaryFile(dir=directory) as scratch:
        facts, again = _known(path, manifest, files, owner, share)
        name = hashlib.sha256(json.dumps([content, *sorted(bare)]).encode()).hexdigest()[:16]
        if again:  # all of them, whatever their side and share; nobody writes before the sizes are exchanged
            for old in directory.glob(f"{glob.escape(manifest.name)}-*-{cache.FORMAT}-{name}*"):
                if not old.name.endswith(".partial"):
                    shutil.rmtree(old, ignore_errors=True)
        stored = facts.stored if facts else _stored(manifest, files, owner, share)
        side = side_of(stored[labelled]) if side_of else 0
        complete = directory / f"{manifest.name}-{side}-{cache.FORMAT}-{name}"
        targets = [complete.with_name(complete.name + end) for end in ending]
        cached = labelled & (owner == share.process)
        target = targets[share.process]
        if complete.exists():
            target, cached = complete, labelled
        keep = feed != "decoded" and cached.any()
        if facts and facts.unreadable and on_bad == "stop":
            keep = False  # nothing will be trained on
        seen, start = None if facts else _Seen.of_none(len(files), scratch), time.monotonic()
        with local:
            if keep and not target.exists():
                cache.clear(target)  # before the disk is measured
                # Processes that have their locks in this directory write there at the same time.
                pairs = enumerate(zip(locks, targets, strict=True))
                here = [n for n, (own, other) in pairs if own.exists() and not other.exists()]
                count = int((labelled & np.isin(owner, here)).sum())
                if feed == "auto" and not cache.has_room(directory, count, side):
                    log.info(
                        f"no room for the canvases in {directory}: images are decoded when needed"
                    )
                    keep = False
                else:
                    cache.need_room(directory, count, side)
            writer = None
            if keep and not target.exists():
                count = int(cached.sum())
                writer = cache.Writer(target, count, side)
                log.info(
                    f"decoding {count:,} images to {side} x {side}: "
                    f"{count * side**2 * 3 / 1e6:,.1f} MB in {target}"
                )
            if seen or writer:
                kept = False
                try:
                    mine = np.flatnonzero(owner == share.process)
                    bad = _read(manifest, files, mine, cached, seen, writer)
                    if facts:
                        _check_still_read(bad, facts)
                    kept = on_bad != "stop" or not bad
                finally:
                    if writer:
                        writer.close(kept)
                keep = keep and kept
        if seen:
            facts = _joined(seen, files, stored, owner, share)
            _save(facts, path)
            seconds = time.monotonic() - start
            if seconds > 2:
                log.info(f"{manifest.name}: {len(files):,} images checked in {seconds:.0f} s, once")
    rows = np.full(len(files), -1, np.int64)
    pixels = np.zeros((0, side, side, 3), np.uint8)
    if keep:
        pixels, rows[cached] = cache.open_pixels(target), np.arange(cached.sum())
    sizes = cache.fitted(facts.sizes, side)
    owner = owner if share.of > 1 else None
    return Look(facts, cache.Canvases(pixels, sizes, rows, files, manifest.read, owner))


def _known(
    path: Path, manifest: Manifest, files: tuple[str, ...], owner: np.ndarray, share: Share
) -> tuple[Facts | None, bool]:
    """The facts, if all processes have the same; whether an image that was unreadable can be read again."""
    facts = _load(path, files) if path.exists() else None
    bad = facts.unreadable if facts else ()
    again = any(owner[row] == share.process and _readable(manifest, files[row]) for row in bad)
    names = hashlib.sha256("\0".join(files).encode(errors="surrogateescape")).digest()
    said = shares.of_all(names + bytes([again]) + (_digest(facts) if facts else b""), share)
    for process, other in enumerate(said):
        if other[: len(names)] != said[0][: len(names)]:
            raise UserError(
                f"process {process} sees other images of {manifest.name} than the first process. All "
                "processes of a run need the same images at the same path (config.data)."
            )
    again = any(other[len(names)] for other in said)
    return (None if again or len(set(said)) > 1 else facts), again


def _digest(facts: Facts) -> bytes:
    digest = hashlib.sha256(json.dumps(facts.unreadable).encode())
    for array in facts[1:-1]:
        digest.update(np.ascontiguousarray(array))
    return digest.digest()


def _stored(
    manifest: Manifest, files: tuple[str, ...], owner: np.ndarray, share: Share
) -> np.ndarray:
    """The sizes by the headers, of which each process opens its own."""
    mine = np.flatnonzero(owner == share.process)
    sizes = np.zeros((len(files), 2), np.int32)
    sizes[mine] = cache.image_sizes(manifest, [files[row] for row in mine])
    shares.fill(sizes, owner, share)
    return sizes


def _load(path: Path, files: tuple[str, ...]) -> Facts:
    with np.load(path) as saved:
        arrays = {name: saved[name] for name in Facts._fields[1:]}
    reasons = json.loads(arrays["unreadable"].tobytes())
    return Facts(files, **arrays | {"unreadable": {int(row): why for row, why in reasons.items()}})


def _readable(manifest: Manifest, file: str) -> bool:
    try:
        manifest.read(file)
    except UserError:
        return False
    return True


def _save(facts: Facts, path: Path) -> None:
    reasons = np.frombuffer(json.dumps(facts.unreadable).encode(), np.uint8)
    arrays = {name: array for name, array in facts._asdict().items() if name != "files"}
    with atomic(path) as out:
        np.savez(out, **arrays | {"unreadable": reasons})


class _Seen(NamedTuple):
    """What is seen in N images, of which a process fills its own; see `Facts` and `signature`."""

    sizes: np.ndarray
    kinds: np.ndarray
    digests: np.ndarray
    hashes: np.ndarray
    levels: np.ndarray
    # 4 KiB an image, on the disk: for 100,000 images that is more than memory should be spent on.
    small: np.ndarray
    unreadable: dict[int, str]

    @classmethod
    def of_none(cls, count: int, scratch: BinaryIO) -> "_Seen":
        """Args: scratch, an empty file."""
        shape = (max(1, count), transformed.SIDE, transformed.SIDE)
        return cls(
            np.zeros((count, 2), np.int32),
            np.zeros(count, np.uint16),
            np.zeros((count, 16), np.uint8),
            np.zeros((count, 16), np.uint8),
            np.zeros((count, 192), np.uint8),
            np.memmap(scratch, np.uint8, "w+", shape=shape),
            {},
        )


def _read(
    manifest: Manifest,
    files: tuple[str, ...],
    mine: np.ndarray,
    cached: np.ndarray,
    seen: _Seen | None,
    writer: cache.Writer | None,
) -> dict[int, str]:
    """Reads the rows `mine`: what is seen, and the canvases of those to be cached; which are unreadable."""
    bad: dict[int, str] = {}
    start = told = time.monotonic()
    threads = os.cpu_count() or 1

    def look(row: int):
        """(reason or None, what is seen or None, canvas or None) of an image."""
        file, found = files[row], None
        try:
            image = manifest.read(file)
        except UserError as error:
            return reason_of(manifest, file, str(error)), None, None
        if seen:
            found = (*describe(manifest, file, image), *signature(image), transformed.small(image))
        canvas = cache.fit(image, writer.side) if writer and cached[row] else None
        return None, found, canvas

    chunk = min(CHUNK, max(threads, CHUNK_BYTES // (writer.side**2 * 3))) if writer else CHUNK
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(mine), chunk):
            rows = mine[first : first + chunk].tolist()
            canvases = []
            for row, (reason, found, canvas) in zip(rows, pool.map(look, rows), strict=True):
                if reason is not None:
                    bad[row] = reason
                elif seen:
                    for array, value in zip(seen[:-1], found, strict=True):
                        array[row] = value
                if cached[row]:
                    canvases.append(canvas)
            if writer:
                writer.add(canvases)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                log.info(f"  {first + len(rows):,} of {len(mine):,} images")
    seconds = time.monotonic() - start
    if writer:
        log.info(f"  done in {seconds:.1f} s ({len(mine) / max(seconds, 1e-3):,.0f} images/s)")
    if seen:
        seen.unreadable.update(bad)
    return bad


def _check_still_read(bad: dict[int, str], facts: Facts) -> None:
    """Raises UserError where an image that the facts know as good is unreadable: its canvas is black."""
    new = sorted(bad.keys() - facts.unreadable.keys())
    if new:
        raise UserError(
            f"{len(new):,} images that could be read before cannot be read now, such as "
            f"{facts.files[new[0]]}: {bad[new[0]]}. See to the disk, and start again."
        )


def _joined(
    seen: _Seen, files: tuple[str, ...], stored: np.ndarray, owner: np.ndarray, share: Share
) -> Facts:
    """The facts of all images from what each process has seen in its own."""
    for array in seen[:3]:
        shares.fill(array, owner, share)
    for array in seen[3:-1]:
        shares.fill(array, owner, share, to_all=False)
    unreadable: dict[int, str] = {}
    for text in shares.of_all(json.dumps(seen.unreadable).encode(), share):
        unreadable |= {int(row): reason for row, reason in json.loads(text).items()}
    # By one process for all: another kind of machine may round to another side of a threshold.
    near = _near(seen).tobytes() if share.process == 0 else b""
    near = np.frombuffer(shares.of_all(near, share)[0], np.int64).reshape(-1, 2)
    bad = dict(sorted(unreadable.items()))
    return Facts(files, stored, seen.sizes, seen.kinds, seen.digests, near, bad)


def _near(seen: _Seen) -> np.ndarray:
    """int64 [P, 2]: rows of images that look the same but are not equal."""
    # One of equal images stands for all; in very small ones too little can be seen.
    _, one = np.unique(seen.digests, axis=0, return_index=True)
    rows = np.sort(one[seen.sizes[one].min(1) >= 32])
    near = [near_pairs(seen.hashes[rows], seen.levels[rows]), transformed.pairs(seen.small, rows)]
    return rows[np.unique(np.concatenate(near), axis=0)]
