"""What every image of a data set is, from one look at each; kept on disk until a file changes."""

import hashlib
import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fgvc_jax.data import cache
from fgvc_jax.data.doctor.duplicates import near_pairs, signature
from fgvc_jax.data.manifest import Manifest
from fgvc_jax.errors import UserError
from fgvc_jax.files import atomic, locked

log = logging.getLogger(__name__)

FORMAT = 1  # raised whenever the same files would give other facts
# What is converted on reading; bit i of `Facts.kinds`.
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


class Facts(NamedTuple):
    """About N images."""

    sizes: np.ndarray  # int32 [N, 2], height and width, upright; 0 where unreadable
    kinds: np.ndarray  # uint16 [N], bits by KINDS
    digests: np.ndarray  # uint8 [N, 16], of shape and pixels; equal only for equal images
    near: np.ndarray  # int64 [P, 2], rows of images that look the same but are not equal
    unreadable: dict[int, str]  # row -> reason


def collect(
    manifest: Manifest,
    files: list[str],
    directory: str | os.PathLike,
) -> Facts:
    """The facts of `files`, in this order, from the directory or from reading every image once.

    They are kept under a key of the files (names, sizes, times of change; the pixels where they are
    not files). What could not be read is tried again. Of several processes at once one reads and the
    others wait. Per image some 250 bytes are held in memory.
    """
    directory = Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    key = cache.key(manifest, files, f"facts {FORMAT}")
    path = directory / f"{manifest.name}-facts-{key}.npz"
    with locked(path.with_suffix(".lock")):
        if path.exists():
            facts = _load(path)
            if not any(_readable(manifest, files[row]) for row in facts.unreadable):
                return facts
        facts = _read_all(manifest, files)
        _save(facts, path)
    return facts


def _load(path: Path) -> Facts:
    with np.load(path) as saved:
        arrays = {name: saved[name] for name in Facts._fields}
    reasons = json.loads(arrays["unreadable"].tobytes())
    return Facts(**arrays | {"unreadable": {int(row): why for row, why in reasons.items()}})


def _readable(manifest: Manifest, file: str) -> bool:
    try:
        manifest.read(file)
    except UserError:
        return False
    return True


def _save(facts: Facts, path: Path) -> None:
    reasons = np.frombuffer(json.dumps(facts.unreadable).encode(), np.uint8)
    with atomic(path) as out:
        np.savez(out, **facts._asdict() | {"unreadable": reasons})


def _read_all(manifest: Manifest, files: list[str]) -> Facts:
    sizes = np.zeros((len(files), 2), np.int32)
    kinds = np.zeros(len(files), np.uint16)
    digests = np.zeros((len(files), 16), np.uint8)
    hashes = np.zeros((len(files), 16), np.uint8)
    levels = np.zeros((len(files), 192), np.uint8)
    unreadable: dict[int, str] = {}
    start = told = time.monotonic()

    def look(file: str):
        try:
            image = manifest.read(file)
        except UserError as error:
            return _reason(manifest, file, str(error))
        digest = hashlib.blake2b(str(image.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(image))
        found = header(manifest, file)
        if (image == image[..., :1]).all():
            found.add("grey")
        bits = sum(1 << KINDS.index(kind) for kind in found)
        return image.shape[:2], bits, np.frombuffer(digest.digest(), np.uint8), *signature(image)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(files), CHUNK):
            for row, seen in enumerate(pool.map(look, files[first : first + CHUNK]), first):
                if isinstance(seen, str):
                    unreadable[row] = seen
                    continue
                sizes[row], kinds[row], digests[row], hashes[row], levels[row] = seen
                if time.monotonic() - told > 10:
                    told = time.monotonic()
                    log.info(f"  {row:,} of {len(files):,} images checked")
    # Of equal images one stands for all; in very small ones too little can be seen.
    _, first = np.unique(digests, axis=0, return_index=True)
    rows = np.sort(first[sizes[first].min(1) >= 32])
    near = rows[near_pairs(hashes[rows], levels[rows])]
    seconds = time.monotonic() - start
    if seconds > 2:
        log.info(f"{manifest.name}: {len(files):,} images checked in {seconds:.0f} s, once")
    return Facts(sizes, kinds, digests, near, unreadable)


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
