"""Any image file as pixels: uint8, RGB, upright."""

import io
import os

import numpy as np
from PIL import Image

from fgvc_jax.errors import UserError

EXTENSIONS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"])


def read_image(path: str | os.PathLike) -> np.ndarray:
    """`decode` of one file.

    Raises:
      UserError: as `decode`, and where the file is missing.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"{path}: cannot be read as an image: {reason}") from error
    return decode(data, path)


def read_in(root: str, file: str) -> np.ndarray:
    """`read_image` of a file named relative to a folder."""
    return read_image(os.path.join(root, file))


def decode(data: bytes, name: str | os.PathLike) -> np.ndarray:
    """The content of an image file to uint8 [H, W, 3], RGB, upright.

    The EXIF orientation is applied, transparency is laid over white, palettes, grey, CMYK and
    16-bit grey are converted; of an animation the first frame is taken.

    Args:
      name: of the image, for messages.

    Raises:
      UserError: with name and reason, where it is empty, truncated, no image, too large to be true,
        or of a kind with no defined grey range (float, 32-bit).
    """
    try:
        if not data:
            raise ValueError("the file is empty")
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            image = _upright(image)
            return np.array(_as_rgb(image))
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{name}: refused, it would decode to far more pixels than a photo has ({error}). "
            "Shrink or remove it."
        ) from error
    except Exception as error:  # Pillow's plugins raise anything on damaged data
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image of a known format"
        raise UserError(f"{name}: cannot be read as an image: {reason}") from error


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    if image.format == "TIFF":  # Pillow has turned these already
        return image
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        orientation = None
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):  # 16-bit grey; Pillow's own conversion clips it
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are {'32-bit integers' if image.mode == 'I' else 'floats'}, whose black "
            "and white are not defined; save it with 8 or 16 bits"
        )
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
