"""Heat maps as pictures."""

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, GREY = "#ffffff", "#1a1a1a", "#6b6b6b"
GAP, HEAD = 10, 44  # between pictures; above each, for two lines of text; pixels
SIDE = 256  # of a picture at least
COLOURS = ("white", "orange", "cyan", "magenta", "lime", "yellow")  # of boxes
DARK = 0.2  # how bright an image stays where a map is 0


def overlay(image_HWC: np.ndarray, heat_hw: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """The image in grey under the heat, resized to it: uint8 [H, W, 3].

    Args:
      image_HWC: uint8.
      heat_hw: from 0 to 1, of any size.
      strength: how far the colours cover the image where it is hottest.
    """
    height, width = image_HWC.shape[:2]
    heat = Image.fromarray(heat_hw.astype(np.float32)).resize((width, height), Image.BILINEAR)
    heat = np.clip(np.asarray(heat), 0, 1)[..., None]
    grey = np.asarray(Image.fromarray(image_HWC).convert("L"), float)[..., None]
    mixed = (
        grey * (1 - strength * heat)
        + colormaps["inferno"](heat[..., 0])[..., :3] * 255 * strength * heat
    )
    return mixed.round().astype(np.uint8)


def evidence(image_HWC: np.ndarray, found: dict[str, np.ndarray]) -> list[tuple]:
    """A method's evidence of one image as pictures for `row`: one of all boxes, one of each map.

    Args:
      image_HWC: uint8.
      found: boxes int [N, 4] and maps float [h, w], by name, see `fgvc_jax.methods.Method.evidence`.
    """
    boxes = {name: x for name, x in found.items() if np.issubdtype(x.dtype, np.integer)}
    pictures = []
    if boxes:
        note = ", ".join(f"{name}: {colour}" for name, colour in zip(boxes, COLOURS, strict=False))
        pictures.append((outlined(image_HWC, boxes), "picked out by the method", note))
    for name, x in found.items():
        if name not in boxes:
            pictures.append((lit(image_HWC, x), name, "picked out by the method"))
    return pictures


def outlined(image_HWC: np.ndarray, boxes: dict[str, np.ndarray]) -> np.ndarray:
    """The image, small ones enlarged, with the outlines of boxes int [N, 4] by name, a colour a name."""
    scale = max(1, SIDE / len(image_HWC))
    side = round(scale * len(image_HWC))
    picture = Image.fromarray(image_HWC).resize((side, side), Image.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for colour, of_name in zip(itertools.cycle(COLOURS), boxes.values(), strict=False):
        for top, left, bottom, right in of_name.tolist():
            ends = scale * left, scale * top, scale * (right + 1) - 1, scale * (bottom + 1) - 1
            corners = np.clip(np.round(ends), 0, side - 1)
            draw.rectangle(corners.tolist(), outline="black", width=4)  # seen on any ground
            draw.rectangle((corners + np.array([1, 1, -1, -1])).tolist(), outline=colour, width=2)
    return np.asarray(picture)


def lit(image_HWC: np.ndarray, map_hw: np.ndarray) -> np.ndarray:
    """The image, dark where a map is 0 and as it is where it is 1, in the map's own cells."""
    size = image_HWC.shape[1], image_HWC.shape[0]
    light = Image.fromarray(map_hw.astype(np.float32)).resize(size, Image.NEAREST)
    light = DARK + (1 - DARK) * np.asarray(light)[..., None]
    return (image_HWC * light).round().astype(np.uint8)


def row(pictures: Sequence[tuple[np.ndarray, str, str]]) -> Image.Image:
    """Pictures side by side, each (uint8 [S, S, 3], title, a line below it), small ones enlarged."""
    side = max(SIDE, pictures[0][0].shape[0])
    width = len(pictures) * (side + GAP) + GAP
    sheet = Image.new("RGB", (width, HEAD + side + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (picture, title, note) in enumerate(pictures):
        left = GAP + number * (side + GAP)
        for line, (text, colour) in enumerate(((title, INK), (note, GREY))):
            draw.text((left, 4 + 19 * line), shortened(text, font, side), colour, font)
        sheet.paste(Image.fromarray(picture).resize((side, side), Image.BICUBIC), (left, HEAD))
    return sheet


def shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, or as much of it as fits, with dots."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def placed(heat_hw: np.ndarray, box: np.ndarray | None, side: int) -> np.ndarray:
    """Heat of a part of the image (see `heat.Heat.box`), as heat of the whole, 0 around it: [side, side]."""
    if box is None:
        return heat_hw
    top, left, bottom, right = (int(x) for x in box)
    size = (right - left + 1, bottom - top + 1)
    inside = Image.fromarray(heat_hw.astype(np.float32)).resize(size, Image.BILINEAR)
    whole = np.zeros((side, side), np.float32)
    whole[top : bottom + 1, left : right + 1] = np.asarray(inside)
    return whole


def column(rows: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other."""
    sheet = Image.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows)), PAPER)
    top = 0
    for picture in rows:
        sheet.paste(picture, (0, top))
        top += picture.height
    return sheet
