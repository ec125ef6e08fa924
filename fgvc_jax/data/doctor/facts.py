"""Facts about every image and its canvas, from one look at each; kept until a file changes."""

import dataclasses
import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fgvc_jax.data import cache
from fgvc_jax.data.doctor import transformed
from fgvc_jax.data.doctor.duplicates import equal_groups, near_pairs, signature
from fgvc_jax.data.manifest import Manifest
from fgvc_jax.errors import UserError
from fgvc_jax.files import atomic, locked

log = logging.getLogger(__name__)

FORMAT = 2  # raised whenever the same files would give other facts
# Conversions on reading; bit i of `Facts.kinds`.
KINDS = (
    "cmyk",
    "palette",
    "alpha",
    "sixteen_bits",
    "grey",
    "rotated",
    "animated",
    "extension",
)
CHUNK = 4096  # images in flight at a time
CHUNK_BYTES = 64 * 2**20  # of canvases, which bounds the memory


class Facts(NamedTuple):
    """About N images."""

    files: tuple[str, ...]  # N names, sorted
    stored: (
        np.ndarray
    )  # int32 [N, 2], height and width as the file's header says; 0 where it says nothing
    sizes: np.ndarray  # int32 [N, 2], height and width, upright; 0 where unreadable
    kinds: np.ndarray  # uint16 [N], bits by KINDS
    digests: np.ndarray  # uint8 [N, 16], of shape and pixels; equal only for equal images
    near: np.ndarray  # int64 [P, 2], rows of images that look the same but are not equal
    unreadable: dict[int, str]  # row -> reason


@dataclasses.dataclass(frozen=True)
class Look:
    """The result of one look at every image.

    Attributes:
      facts: about all images, unlabelled ones too.
      side: of the canvases, pixels.
      read: file -> uint8 [H, W, 3].
      stored: the canvases of the labelled images; None where they are not kept.
      rows: file -> row of `stored`.
    """

    facts: Facts
    side: int
    read: Callable[[str], np.ndarray]
    stored: cache.Canvases | None = None
    rows: dict[str, int] = dataclasses.field(default_factory=dict)

    def canvases(self, files: Sequence[str]) -> cache.Canvases | cache.Decoded:
        """Those of some of the images, such as a split's, in this order."""
        if self.stored is None:
            return cache.Decoded(tuple(files), self.read, self.side)
        rows = np.array([self.rows[file] for file in files], np.int64)
        pixels, sizes = self.stored.pixels, self.stored.sizes[rows]
        if len(rows) and (np.diff(rows) == 1).all():  # as where each split has a folder
            return cache.Canvases(pixels[rows[0] : rows[-1] + 1], sizes)
        return cache.Canvases(pixels, sizes, rows)


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
    return _look(manifest, directory, None, "decoded", "stop").facts


def look(
    manifest: Manifest,
    directory: str | os.PathLike,
    *,
    resize: int,
    squash: Sequence[int] = (),
    canvas: int = 0,
    feed: str = "auto",
    on_bad: str = "stop",
) -> Look:
    """Facts and canvases of all images, from the directory or from reading every image once.

    They are kept under a key of the files (names, sizes, times of change; the pixels where they are not
    files), the canvases also of their side; labels and splits do not matter. What could not be read is tried
    again. Each file is written under another name and renamed when complete; of several processes at once
    one reads and the others wait. Per image some 350 bytes are held in memory, and 64 MiB of canvases.

    Args:
      manifest: the data set, whatever its splits.
      directory: where caches lie; made if missing.
      resize, squash, canvas: see `fgvc_jax.data.cache.canvas_side`.
      feed: config.data.feed. 'decoded' keeps no canvases; 'auto' neither, where the disk has no room.
      on_bad: config.data.on_bad. With 'stop' no canvases are kept where an image cannot be read, as its
        place would have to be made anew.

    Raises:
      UserError: a full disk, with another feed than 'auto'.
    """

    def side_of(sizes: np.ndarray) -> int:
        return cache.canvas_side(sizes, resize=resize, squash=squash, canvas=canvas)

    return _look(manifest, directory, side_of, feed, on_bad)


def _look(manifest: Manifest, directory, side_of, feed: str, on_bad: str) -> Look:
    directory = Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    files, bare = every_file(manifest), set(manifest.unlabelled)
    labelled = np.array([file not in bare for file in files], bool)
    content = cache.key(manifest, files)
    path = directory / f"{manifest.name}-facts{FORMAT}-{content}.npz"
    with locked(directory / f"{manifest.name}-{content}.lock"):
        facts = _load(path, files) if path.exists() else None
        again = facts and any(_readable(manifest, files[row]) for row in facts.unreadable)
        if again:
            facts = None
        stored = facts.stored if facts else cache.image_sizes(manifest, files)
        side = side_of(stored[labelled]) if side_of else 0
        name = hashlib.sha256(json.dumps([content, *sorted(bare)]).encode()).hexdigest()[:16]
        target = directory / f"{manifest.name}-{side}-{cache.FORMAT}-{name}"
        if again:  # all of them, whatever their side
            for old in directory.glob(f"{glob.escape(manifest.name)}-*-{cache.FORMAT}-{name}"):
                shutil.rmtree(old)
        keep = feed != "decoded"
        if facts and facts.unreadable and on_bad == "stop":
            keep = False  # nothing will be trained on
        if keep and not target.exists():
            if feed == "auto" and not cache.has_room(directory, labelled.sum(), side):
                log.info(f"no room for the canvases in {directory}: images are decoded each time")
                keep = False
            else:
                cache.need_room(directory, labelled.sum(), side)
        writer = None
        if keep and not target.exists():
            writer = cache.Writer(target, int(labelled.sum()), side)
            log.info(
                f"decoding {labelled.sum():,} images to {side} x {side}: "
                f"{labelled.sum() * side**2 * 3 / 1e6:,.1f} MB in {target}"
            )
        if facts is None or writer:
            kept = False
            try:
                facts = _read_all(manifest, files, stored, labelled, facts, writer, directory)
                _save(facts, path)
                kept = on_bad != "stop" or not facts.unreadable
            finally:
                if writer:
                    writer.close(kept)
            keep = keep and kept
        if not keep:
            return Look(facts, side, manifest.read)
        rows = {files[row]: i for i, row in enumerate(np.flatnonzero(labelled).tolist())}
        return Look(facts, side, manifest.read, cache.open_canvases(target), rows)


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


def _read_all(
    manifest: Manifest,
    files: tuple[str, ...],
    stored: np.ndarray,
    labelled: np.ndarray,
    known: Facts | None,
    writer: cache.Writer | None,
    directory: Path,
) -> Facts:
    """The facts, where they are not known; the canvases of the labelled images go to the writer, if any."""
    count = len(files)
    sizes = np.zeros((count, 2), np.int32)
    kinds = np.zeros(count, np.uint16)
    digests = np.zeros((count, 16), np.uint8)
    hashes = np.zeros((count, 16), np.uint8)
    levels = np.zeros((count, 192), np.uint8)
    unreadable: dict[int, str] = {}
    start = told = time.monotonic()
    threads = os.cpu_count() or 1

    def look(row: int):
        """(reason or None, what is seen or None, canvas or None) of an image."""
        file, seen = files[row], None
        try:
            image = manifest.read(file)
        except UserError as error:
            return _reason(manifest, file, str(error)), None, None
        if known is None:
            seen = (*_describe(manifest, file, image), *signature(image), transformed.small(image))
        canvas = cache.fit(image, writer.side) if writer and labelled[row] else None
        return None, seen, canvas

    chunk = min(CHUNK, max(threads, CHUNK_BYTES // (writer.side**2 * 3))) if writer else CHUNK
    with ThreadPoolExecutor(threads) as pool, tempfile.TemporaryFile(dir=directory) as scratch:
        shape = (max(1, count), transformed.SIDE, transformed.SIDE)
        # 4 KiB an image, on the disk: for 100,000 images that is more than memory should be spent on.
        small = None if known else np.memmap(scratch, np.uint8, "w+", shape=shape)
        for first in range(0, count, chunk):
            rows = range(first, min(first + chunk, count))
            canvases = []
            for row, (reason, seen, canvas) in zip(rows, pool.map(look, rows), strict=True):
                if reason is not None:
                    unreadable[row] = reason
                elif seen is not None:
                    sizes[row], kinds[row], digests[row], hashes[row], levels[row], small[row] = (
                        seen
                    )
                if labelled[row]:
                    canvases.append(canvas)
            if writer:
                writer.add(canvases)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                log.info(f"  {rows.stop:,} of {count:,} images")
        seconds = time.monotonic() - start
        if writer:
            log.info(f"  done in {seconds:.1f} s ({count / max(seconds, 1e-3):,.0f} images/s)")
        if known is not None:
            return known
        # One of equal images stands for all; in very small ones too little can be seen.
        _, one = np.unique(digests, axis=0, return_index=True)
        rows = np.sort(one[sizes[one].min(1) >= 32])
        near = [near_pairs(hashes[rows], levels[rows]), transformed.pairs(small, rows)]
        near = rows[np.unique(np.concatenate(near), axis=0)]
    seconds = time.monotonic() - start
    if seconds > 2:
        log.info(f"{manifest.name}: {count:,} images checked in {seconds:.0f} s, once")
    return Facts(files, stored, sizes, kinds, digests, near, unreadable)


def _describe(manifest: Manifest, file: str, image: np.ndarray):
    """Size, bits of KINDS and digest."""
    digest = hashlib.blake2b(str(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image))
    found = header(manifest, file)
    if (image == image[..., :1]).all():
        found.add("grey")
    bits = sum(1 << KINDS.index(kind) for kind in found)
    return image.shape[:2], bits, np.frombuffer(digest.digest(), np.uint8)


def header(manifest: Manifest, file: str) -> set[str]:
    """The KINDS that a readable file's header shows; none where it is not a file on disk."""
    if manifest.root is None:
        return set()
    try:
        return _header(manifest.root, file)
    except Exception:  # Pillow's plugins raise anything on data damaged behind the first frame
        return set()


def _header(root: str, file: str) -> set[str]:
    with Image.open(os.path.join(root, file)) as image:
        mode, kind = image.mode, "JPEG" if image.format == "MPO" else image.format
        # getexif() alone would decode a PNG to look for EXIF data after its pixels.
        exif = image.getexif() if kind == "TIFF" or "exif" in image.info else {}
        expected = Image.registered_extensions().get(os.path.splitext(file)[1].lower(), kind)
        found = {
            "cmyk": mode == "CMYK",
            "palette": mode in ("P", "PA"),
            "alpha": mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info,
            # Pillow reads 16-bit colour as 8 bits; only the name of the raw mode tells.
            "sixteen_bits": mode.startswith("I;16") or ";16" in str(image.tile),
            "rotated": exif.get(0x0112, 1) in range(2, 9),
            "animated": kind != "JPEG" and getattr(image, "is_animated", False),
            "extension": expected != kind,
        }
    return {name for name, is_so in found.items() if is_so}


def _reason(manifest: Manifest, file: str, message: str) -> str:
    """Why a file cannot be read; what it is instead, where that is plain."""
    if manifest.root is None:
        return message
    path = os.path.join(manifest.root, file)
    message = message.removeprefix(f"{path}: ").removeprefix("cannot be read as an image: ")
    if os.path.islink(path) and not os.path.exists(path):
        return f"a link to {os.readlink(path)}, which does not exist"
    try:
        with open(path, "rb") as opened:
            head = opened.read(512).lstrip().lower()
    except OSError:
        return message
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not an image: the download failed"
    if head and "not an image" in message and head.isascii():
        return "a text file, not an image"
    return message
