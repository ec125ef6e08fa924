"""Small pictures for pages that need no other file."""

import base64
import io

import numpy as np
from PIL import Image


def thumbnail(pixels: np.ndarray, side: int, quality: int = 80) -> str:
    """A JPEG as a data URI; the pixels of tiny pictures stay visible.

    Args:
      pixels: uint8 [H, W, 3].
      side: the longer side of the result, pixels.
    """
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    size = tuple(max(1, round(length * scale)) for length in image.size)
    sampling = Image.Resampling.LANCZOS if scale < 2 else Image.Resampling.NEAREST
    out = io.BytesIO()
    image.resize(size, sampling).save(out, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
