"""Canvases: every image of a data set decoded once, as uint8 squares in a memory-mapped file."""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from fgvc_jax.data.manifest import Manifest
from fgvc_jax.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 2  # raised whenever the pixels of a canvas, or their order, would change
LEAST = 512  # a canvas that is derived is not smaller, unless all images are
LONGEST_ASPECT = 2.0  # of which a derived canvas still keeps all detail
SHARE = 0.99  # of the images, which a derived canvas suits


class Canvases(NamedTuple):
    """N images at the top left of equal squares, zero beyond: cached, or decoded whenever they are taken.

    Attributes:
      pixels: uint8 [M, C, C, 3], memory-mapped, read-only; those that are cached.
      sizes: int32 [N, 2], valid height and width.
      rows: int64 [N], the place of each in `pixels`, -1 where it is not cached; None = in this order, M = N.
      files: N names; of images that are not cached.
      read: file -> uint8 [H, W, 3]; likewise.
      owner: int [N], which of several processes caches each; None = every process all of them.
    """

    pixels: np.ndarray
    sizes: np.ndarray
    rows: np.ndarray | None = None
    files: tuple[str, ...] = ()
    read: Callable[[str], np.ndarray] | None = None
    owner: np.ndarray | None = None

    @property
    def side(self) -> int:
        return self.pixels.shape[1]

    @property
    def nbytes(self) -> int:
        """Of the pixels of these N images."""
        return len(self.sizes) * self.side**2 * 3

    def of(self, at: np.ndarray) -> "Canvases":
        """Some of them, int [B], in this order."""
        rows = at if self.rows is None else self.rows[at]
        pixels = self.pixels
        if len(rows) and rows[0] >= 0 and (np.diff(rows) == 1).all():
            pixels, rows = pixels[rows[0] : rows[-1] + 1], None  # as where each split has a folder
        files = tuple(self.files[i] for i in at) if self.files else ()
        owner = None if self.owner is None else self.owner[at]
        return Canvases(pixels, self.sizes[at], rows, files, self.read, owner)

    def take(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 [B, C, C, 3], int32 [B, 2]) of some images.

        Raises:
          UserError: for one that is not cached and cannot be read.
        """
        rows = at if self.rows is None else self.rows[at]
        if (rows >= 0).all():
            return self.pixels[rows], self.sizes[at]
        pixels = np.zeros((len(at), self.side, self.side, 3), np.uint8)
        for canvas, row, image in zip(pixels, rows, at, strict=True):
            if row >= 0:
                canvas[:] = self.pixels[row]
            else:
                place(fit(self.read(self.files[image]), self.side), canvas)
        return pixels, self.sizes[at]


def canvas_side(
    sizes: np.ndarray, *, resize: int, squash: Sequence[int] = (), canvas: int = 0
) -> int:
    """The side of the canvases, pixels: a multiple of 8, or as given.

    With canvas = 0 it is what the resize needs: an image with sides a >= b, whose shorter side becomes R,
    needs min(a, R a / b), so that it is never shrunk below the resized size; for R the squash's longer side
    stands in place of `resize`. The canvas suits 99 of 100 images and aspects up to 2, and is 512 at least,
    or the longest side of all images where that is less. The rest lose detail; `needed` counts them.

    Args:
      sizes: int [N, 2], height and width of the images; those with a 0 (unreadable) are passed over.
        Without any, as for images to come, it is as large as an aspect of 2 needs.
      resize: shorter side before the crop, pixels.
      squash: (height, width) to which images are resized whatever their aspect; () = they keep it.
      canvas: a side that is given; it is taken, but for the longest side of all images where that is less.
    """
    sizes = sizes[sizes.min(1) > 0] if len(sizes) else sizes
    if not len(sizes):
        return canvas or max(LEAST, _eights(LONGEST_ASPECT * max(squash or (resize,))))
    longest = _eights(sizes.max())
    if not canvas:
        needs = needed(sizes, resize=resize, squash=squash, most=LONGEST_ASPECT)
        canvas = max(LEAST, _eights(np.quantile(needs, SHARE, method="higher")))
    return min(canvas, longest)


def needed(
    sizes: np.ndarray, *, resize: int, squash: Sequence[int] = (), most: float = np.inf
) -> np.ndarray:
    """float [N]: the side that each image needs, see `canvas_side`; aspects count as at most `most`."""
    long, short = sizes.max(1), sizes.min(1)
    return np.minimum(long, max(squash or (resize,)) * np.minimum(long / short, most))


def _eights(length: float) -> int:
    return -int(-length // 8) * 8


def image_sizes(manifest: Manifest, files: Sequence[str]) -> np.ndarray:
    """int32 [N, 2]: height and width, 0 where unreadable, without decoding where that can be.

    As stored: an image that is turned upright on reading has the two exchanged.
    """

    def look(file: str) -> tuple[int, int]:
        try:
            if manifest.size_of is not None:
                return manifest.size_of(file)
            if manifest.root is None:
                return manifest.read(file).shape[:2]
            with Image.open(os.path.join(manifest.root, file)) as image:
                return image.size[::-1]
        except Exception:  # Pillow's plugins raise anything on damaged data; decoding names it
            return 0, 0

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(look, files))
    return np.array(found, np.int32).reshape(-1, 2)


class Writer:
    """Writes the canvases of N images into a folder, which gets its name when it is complete."""

    def __init__(self, target: Path, count: int, side: int):
        self.target, self.side = target, side
        self.partial = clear(target)
        self.partial.mkdir()
        self.out: BinaryIO = open(self.partial / "pixels.npy", "wb")  # noqa: SIM115
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
        np.lib.format.write_array_header_1_0(self.out, header)

    def add(self, images: Sequence[np.ndarray | None]) -> None:
        """The next images, as `fit` gives them; None = unreadable, which leaves its place empty."""
        block = np.zeros((len(images), self.side, self.side, 3), np.uint8)
        for image, canvas in zip(images, block, strict=True):
            if image is not None:
                place(image, canvas)
        self.out.write(block)

    def close(self, keep: bool) -> None:
        """Gives the folder its name, or removes it."""
        self.out.close()
        if keep:
            os.rename(self.partial, self.target)
        else:
            shutil.rmtree(self.partial)


def clear(target: Path) -> Path:
    """Removes what an interrupted `Writer` has left, and says where; the caller has the lock."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    return partial


def open_pixels(target: Path) -> np.ndarray:
    """What a `Writer` has written: uint8 [N, C, C, 3], memory-mapped."""
    return np.load(target / "pixels.npy", mmap_mode="r")


def has_room(directory: Path, count: int, side: int) -> bool:
    """Whether the disk has room for that many canvases."""
    return shutil.disk_usage(directory).free >= 1.02 * count * side**2 * 3


def need_room(directory: Path, count: int, side: int) -> None:
    """Raises UserError where it has not."""
    if not has_room(directory, count, side):
        raise UserError(
            f"The canvases of {count:,} images need {count * side**2 * 3 / 1e6:,.0f} MB but {directory} has "
            f"{shutil.disk_usage(directory).free / 1e6:,.0f} MB free. Use another config.data.cache, a "
            "smaller config.data.canvas, make room, or decode anew each time with config.data.feed='decoded'."
        )


def fit(image: np.ndarray, canvas: int) -> np.ndarray:
    """Shrinks uint8 [H, W, 3], long side at most `canvas`; a smaller image stays as it is.

    Lanczos, because a view is resampled once more from this: of Pillow's filters it leaves the
    final image nearest to the one made from the original (produce31, shrunk to 0.5-0.7: mean error
    0.3 to 1.1 grey levels, bicubic 0.4 to 1.2, bilinear 0.8 to 2.2) and alone keeps its sharpness.
    """
    (h, w), size = fitted(np.array([image.shape[:2]]), canvas)[0].tolist(), image.shape[:2]
    if size == (h, w):
        return image
    return np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.LANCZOS))


def fitted(sizes: np.ndarray, canvas: int) -> np.ndarray:
    """int32 [N, 2]: height and width that images of such sizes have on the canvas; 0 (unreadable) stays."""
    long = sizes.max(1, keepdims=True)
    shrunk = np.rint(sizes * canvas / np.maximum(1, long)).clip(1)
    return np.where(long <= canvas, sizes, shrunk).astype(np.int32)


def place(image: np.ndarray, canvas: np.ndarray) -> None:
    """Puts a fitted image at the top left of an empty canvas."""
    canvas[: image.shape[0], : image.shape[1]] = image


def key(manifest: Manifest, files: Sequence[str]) -> str:
    """A hash of what files hold: by name, size and time of change, or by pixels where they are no files."""
    digest = hashlib.sha256(f"{manifest.root}{manifest.stamp}".encode())
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
