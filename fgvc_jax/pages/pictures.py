"""Small JPEGs of a run's images as data URIs."""

import base64
import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from fgvc_jax.data.thumbnails import thumbnail
from fgvc_jax.errors import UserError

SIDE = 168  # longer side, pixels: shown at 112 or less, so that they are sharp on fine screens


class Pictures:
    """The images of a run, read when they are asked for.

    Attributes:
      missing: file -> why it cannot be read, of those that were asked for.
    """

    def __init__(self, reader: Callable[[str], np.ndarray]):
        self.reader = reader
        self.missing: dict[str, str] = {}
        self._made: dict[str, str] = {}

    def pixels(self, file: str) -> np.ndarray | None:
        """uint8 [H, W, 3]; None where it cannot be read."""
        if file in self.missing:
            return None
        try:
            return self.reader(file)
        except (UserError, OSError) as error:
            self.missing[file] = str(error)
            return None

    def __call__(self, file: str) -> str:
        """A data URI; '' where the image cannot be read."""
        if file not in self._made:
            pixels = self.pixels(file)
            self._made[file] = "" if pixels is None else uri(pixels)
        return self._made[file]


def uri(pixels: np.ndarray) -> str:
    """uint8 [H, W, 3] -> a data URI; the pixels of tiny pictures stay visible."""
    return thumbnail(pixels, SIDE, quality=78)


def side_by_side(uris: Sequence[str]) -> Image.Image:
    """The pictures of some data URIs in a row."""
    parts = [Image.open(io.BytesIO(base64.b64decode(one.partition(",")[2]))) for one in uris]
    row = Image.new("RGB", (sum(p.width for p in parts), max(p.height for p in parts)), "white")
    left = 0
    for part in parts:
        row.paste(part, (left, 0))
        left += part.width
    return row
