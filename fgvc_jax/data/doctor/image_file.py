"""One image file: what it holds and how it is stored, or why it cannot be read."""

import hashlib
import os

import numpy as np
from PIL import Image

from fgvc_jax.data.manifest import Manifest

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


def describe(manifest: Manifest, file: str, image: np.ndarray):
    """Size, bits of KINDS and digest."""
    digest = hashlib.blake2b(str(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image))
    found = _kinds(manifest, file)
    if (image == image[..., :1]).all():
        found.add("grey")
    bits = sum(1 << KINDS.index(kind) for kind in found)
    return image.shape[:2], bits, np.frombuffer(digest.digest(), np.uint8)


def _kinds(manifest: Manifest, file: str) -> set[str]:
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


def reason_of(manifest: Manifest, file: str, message: str) -> str:
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
