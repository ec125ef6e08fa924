"""The canvas cache: every image of a split decoded once, as uint8 squares in a memory-mapped file.

Decoding is also the check of every image: all unreadable ones are reported together.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fgvc_jax.data.manifest import Manifest
from fgvc_jax.errors import UserError
from fgvc_jax.files import locked

log = logging.getLogger(__name__)

FORMAT = 1  # raised whenever the pixels of a canvas would change
CHUNK_BYTES = 64 * 2**20  # decoded and written at a time, which bounds the memory


class Canvases(NamedTuple):
    """Images at the top left of equal squares, zero beyond."""

    pixels: np.ndarray  # uint8 [N, C, C, 3], memory-mapped, read-only
    sizes: np.ndarray  # int32 [N, 2], valid height and width

    @property
    def side(self) -> int:
        return self.pixels.shape[1]

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 [B, C, C, 3], int32 [B, 2]) of some images."""
        return self.pixels[rows], self.sizes[rows]


class Decoded(NamedTuple):
    """The same canvases, decoded whenever they are asked for: for what the disk cannot hold."""

    files: tuple[str, ...]
    read: Callable[[str], np.ndarray]
    side: int

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 [B, C, C, 3], int32 [B, 2]) of some images. Raises UserError for one it cannot read."""
        pixels = np.zeros((len(rows), self.side, self.side, 3), np.uint8)
        sizes = np.zeros((len(rows), 2), np.int32)
        for i, row in enumerate(rows):
            place(fit(self.read(self.files[row]), self.side), pixels[i], sizes[i])
        return pixels, sizes


def canvas_size(manifest: Manifest, canvas: int) -> int:
    """min(canvas, the longest side of any image in any split, rounded up to a multiple of 8).

    Reads image headers only, and stops at the first one that fills the canvas. Unreadable files
    are passed over: `build` reports them.
    """
    longest = manifest.long_side
    for split in manifest.splits.values() if not longest else ():
        for file in split.files:
            longest = max(longest, _long_side(manifest, file))
            if longest >= canvas:
                return canvas
    return min(canvas, -(-longest // 8) * 8) or canvas


def build(
    manifest: Manifest,
    split: str,
    canvas: int,
    directory: str | os.PathLike,
) -> Canvases:
    """Memory-maps the canvases of a split, decoding the images first where that is not yet done.

    An image keeps its aspect and is shrunk only if its long side exceeds the canvas. The cache is
    keyed by the files (names, sizes, times of change; the pixels where they are not files), the
    canvas and the format, not by the labels. It is written under another name and renamed when
    complete; of several processes at once one writes and the others wait.

    Args:
      manifest: the data set.
      split: which of its splits.
      canvas: side of the squares; see `canvas_size`.
      directory: where caches lie; made if missing.

    Raises:
      UserError: images that cannot be read (the first ten and the count), or a full disk.
    """
    directory = Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    target = _target(manifest, split, canvas, directory)
    with locked(f"{target}.lock"):
        if not target.exists():
            _write(manifest, split, canvas, target)
    return Canvases(np.load(target / "pixels.npy", mmap_mode="r"), np.load(target / "sizes.npy"))


def _target(manifest: Manifest, split: str, canvas: int, directory: Path) -> Path:
    digest = key(manifest, manifest.splits[split].files, f"{FORMAT} {canvas}")
    return directory / f"{manifest.name}-{split}-{canvas}-{digest}"


def _write(manifest: Manifest, split: str, canvas: int, target: Path) -> None:
    files = manifest.splits[split].files
    image_bytes = canvas * canvas * 3
    total = len(files) * image_bytes
    log.info(
        f"decoding {len(files):,} {split} images to {canvas} x {canvas}: "
        f"{total / 1e6:,.1f} MB in {target}"
    )
    free = shutil.disk_usage(target.parent).free
    if free < 1.02 * total:
        raise UserError(
            f"The canvas cache of {split} needs {total / 1e6:,.0f} MB but {target.parent} has "
            f"{free / 1e6:,.0f} MB free. Use another directory, a smaller canvas, or make room."
        )
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an interrupted run: we hold the lock
    partial.mkdir()
    sizes = np.zeros((len(files), 2), np.int32)
    bad: list[str] = []
    start = told = time.monotonic()
    threads = os.cpu_count() or 1
    chunk = max(threads, CHUNK_BYTES // image_bytes)

    def decode(file: str) -> np.ndarray | UserError:
        try:
            return fit(manifest.read(file), canvas)
        except UserError as error:
            return error

    with ThreadPoolExecutor(threads) as pool, open(partial / "pixels.npy", "wb") as out:
        shape = (len(files), canvas, canvas, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        for first in range(0, len(files), chunk):
            images = list(pool.map(decode, files[first : first + chunk]))
            block = np.zeros((len(images), canvas, canvas, 3), np.uint8)
            for i, image in enumerate(images):
                if isinstance(image, UserError):
                    bad.append(str(image))
                    continue
                place(image, block[i], sizes[first + i])
            out.write(block)
            if time.monotonic() - told > 10:
                told = time.monotonic()
                log.info(f"  {first + len(images):,} of {len(files):,} images")
    if bad:
        shutil.rmtree(partial)
        more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise UserError(
            f"{len(bad)} of {len(files):,} {split} images cannot be read:\n  "
            + "\n  ".join(bad[:10])
            + more
            + "\nReplace them or remove them; nothing is skipped in silence."
        )
    np.save(partial / "sizes.npy", sizes)
    os.rename(partial, target)
    seconds = time.monotonic() - start
    log.info(f"  done in {seconds:.1f} s ({len(files) / seconds:,.0f} images/s)")


def fit(image: np.ndarray, canvas: int) -> np.ndarray:
    """Shrinks uint8 [H, W, 3], long side at most `canvas`; a smaller image stays as it is.

    Lanczos, because a view is resampled once more from this: of Pillow's filters it leaves the
    final image nearest to the one made from the original (produce31, shrunk to 0.5-0.7: mean error
    0.3 to 1.1 grey levels, bicubic 0.4 to 1.2, bilinear 0.8 to 2.2) and alone keeps its sharpness.
    """
    h, w = image.shape[:2]
    long = max(h, w)
    if long <= canvas:
        return image
    size = (max(1, round(w * canvas / long)), max(1, round(h * canvas / long)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def place(image: np.ndarray, canvas: np.ndarray, size: np.ndarray) -> None:
    """Puts a fitted image at the top left of an empty canvas, and writes its height and width."""
    size[:] = image.shape[:2]
    canvas[: size[0], : size[1]] = image


def fits_on_disk(manifest: Manifest, split: str, canvas: int, directory: str | os.PathLike) -> bool:
    """Whether `build` would find room, or has been here before."""
    directory = Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    files = manifest.splits[split].files
    need = len(files) * canvas * canvas * 3
    return (
        shutil.disk_usage(directory).free >= 1.02 * need
        or _target(manifest, split, canvas, directory).exists()
    )


def key(manifest: Manifest, files: Sequence[str], settings: str) -> str:
    """A hash of what the files hold (by name, size and time of change, or by pixels) and of settings."""
    digest = hashlib.sha256(f"{settings} {manifest.root}{manifest.stamp}".encode())
    for file in files:
        if manifest.stamp:
            digest.update(f"{file}\0".encode(errors="surrogateescape"))
        elif manifest.root is None:
            image = manifest.read(file)
            digest.update(f"{file}\0{image.shape}\0".encode())
            digest.update(np.ascontiguousarray(image))
        else:
            try:
                stat = os.stat(os.path.join(manifest.root, file))
                facts = f"{stat.st_size}\0{stat.st_mtime_ns}"
            except OSError:  # gone since it was listed; decoding names it
                facts = "missing"
            digest.update(f"{file}\0{facts}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _long_side(manifest: Manifest, file: str) -> int:
    if manifest.root is None:
        return max(manifest.read(file).shape[:2])
    try:
        with Image.open(os.path.join(manifest.root, file)) as image:
            return max(image.size)
    except Exception:  # Pillow's plugins raise anything on damaged data
        return 0
