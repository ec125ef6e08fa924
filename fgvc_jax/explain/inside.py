"""How much of a heat map lies inside the box around the object, where boxes are known."""

import csv
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from fgvc_jax.data.archives.table import lines, numbers
from fgvc_jax.errors import UserError
from fgvc_jax.explain.enlarge import enlarge
from fgvc_jax.explain.heat import PREDICTED, Heat, box_of
from fgvc_jax.images.boxes import center_crop_box, resized_size
from fgvc_jax.images.view import View

HEADER = ["file", "x", "y", "width", "height"]
Box = tuple[float, float, float, float]  # x, y of the left upper corner, width, height; pixels


def read_boxes(path: str | os.PathLike) -> dict[str, Box]:
    """Boxes by file: a CSV with the header file,x,y,width,height, or CUB's bounding_boxes.txt.

    x and y are of the left upper corner, in pixels of the image as it is stored, upright. CUB's list names
    images by the numbers of the images.txt beside it.

    Raises:
      UserError: a file that is missing or of neither form, or a line that is no box; with its number.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"--boxes={path}: {error.strerror}.") from None
    listed = _of_csv(path, text) if "," in text.partition("\n")[0] else _of_cub(path)
    boxes = {}
    for where, file, values in listed:
        x, y, width, height = numbers(values, 4, where)
        if not (all(map(math.isfinite, (x, y))) and 0 < width < math.inf and 0 < height < math.inf):
            raise UserError(f"{where}: {values!r} is no box of a width and a height above 0.")
        boxes[file] = x, y, width, height
    if not boxes:
        raise UserError(f"{path} has no boxes in it.")
    return boxes


def _of_csv(path: Path, text: str) -> Iterator[tuple[str, str, str]]:
    rows = csv.reader(text.splitlines())
    if (header := next(rows)) != HEADER:
        raise UserError(f"{path}: the header must be {','.join(HEADER)}, not {','.join(header)}.")
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if row and len(row) != len(HEADER):
            raise UserError(f"{where}: {len(row)} entries; it must have {', '.join(HEADER)}.")
        if row:
            yield where, row[0], " ".join(row[1:])


def _of_cub(path: Path) -> Iterator[tuple[str, str, str]]:
    names = path.with_name("images.txt")
    if not names.exists():
        raise UserError(
            f"{path} is read as CUB's bounding_boxes.txt, and there is no images.txt beside it that tells "
            f"which image is which. A CSV begins with {','.join(HEADER)}."
        )
    files = lines(names)
    for number, values in lines(path).items():
        if number not in files:
            raise UserError(f"{path}: image {number} is not in {names}.")
        yield f"{path}, image {number}", files[number], values


def box_for(boxes: Mapping[str, Box], file: str) -> Box | None:
    """The box of the name that the file's path ends with, the longest such; None where there is none."""
    parts = Path(os.path.abspath(file)).parts
    tails = (os.path.join(*parts[i:]) for i in range(len(parts)))
    return next((boxes[tail] for tail in tails if tail in boxes), None)


def in_view(box: Box, height: int, width: int, canvas: int, view: View) -> np.ndarray:
    """A box of an image as the net sees it: top, left, bottom, right in 0..S, float64 [4].

    Args:
      height, width: of the image, pixels.
      canvas: side that the image is shrunk to first, where it is longer.
    """
    scale = min(1.0, canvas / max(height, width))  # as `fgvc_jax.data.cache.fit`
    hw = [max(1, round(x * scale)) for x in (height, width)]
    resized = np.asarray(resized_size(np.array(hw), view))
    crop = np.asarray(center_crop_box(np.array(hw), resized, view.size), np.float64)
    x, y, w, h = box
    ends = np.array([[y, x], [y + h, x + w]]) * np.array(hw) / [height, width]
    return np.clip((ends - crop[:2]) / crop[2:] * view.size, 0, view.size).reshape(4)


def share(heat_SS: np.ndarray, box: Sequence[float]) -> tuple[float, float]:
    """(the share of the heat inside the box, the share of the image that the box covers).

    A pixel that the box cuts counts for the part inside. NaN where there is no heat.
    """
    top, left, bottom, right = box
    pixels = np.arange(len(heat_SS))
    rows, columns = (
        np.clip(np.minimum(last, pixels + 1) - np.maximum(first, pixels), 0, 1)
        for first, last in ((top, bottom), (left, right))
    )
    heat_SS = heat_SS.astype(np.float64)
    whole = heat_SS.sum()
    inside = rows @ heat_SS @ columns / whole if whole > 0 else math.nan
    return float(inside), float(rows.sum() * columns.sum() / heat_SS.size)


def predicted(found: Heat, kind: str, box: Sequence[float]) -> tuple[float, float]:
    """`share` of the predicted class's heat map."""
    part = box_of(kind, found.box)
    part = None if part is None else np.asarray(part)[None]
    heat = enlarge(found.maps[kind][PREDICTED][None], len(found.seen), part)
    return share(np.asarray(heat[0]), box)
