"""The page with a slider, and the GIF."""

import colorsys
import os
from collections.abc import Sequence

import jinja2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fgvc_jax import files
from fgvc_jax.evolution.measure import BINS, Measured, Saved

SIDE, HEAD, GAP, DOT = 480, 40, 16, 3  # of a panel of the GIF, pixels
STILL = 900  # of each picture of the GIF, milliseconds
PAPER, INK = "#ffffff", "#1a1a1a"


def colours(count: int) -> list[str]:
    """'#rrggbb' for each class, neighbours in the table far apart in hue, readable on white and on black."""
    hues = (np.arange(count) * 0.618034) % 1
    levels = [(0.42, 0.55)[i % 2] for i in range(count)]
    found = (colorsys.hls_to_rgb(h, level, 0.75) for h, level in zip(hues, levels, strict=True))
    return ["#" + "".join(f"{round(255 * x):02x}" for x in rgb) for rgb in found]


def unit_square(positions_PN2: np.ndarray) -> np.ndarray:
    """All points of all times into 0..1, with one scale, so that growth is seen."""
    flat = positions_PN2.reshape(-1, 2)
    low, high = flat.min(0), flat.max(0)
    span = max((high - low).max(), 1e-12)
    return (positions_PN2 - (low + high) / 2) / span + 0.5


def page(path: str | os.PathLike, runs: Sequence[tuple[Saved, Measured]], split: str) -> None:
    """Writes the page, atomically; it needs no other file."""
    content = [
        {
            "name": saved.name,
            "steps": saved.steps,
            "epochs": saved.epochs,
            "labels": saved.labels.tolist(),
            "classes": saved.classes,
            "colours": colours(len(saved.classes)),
            "positions": unit_square(measured.positions).round(4).tolist(),
            "same": measured.same,
            "different": measured.different,
            "counts": measured.counts.tolist(),
        }
        for saved, measured in runs
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fgvc_jax.evolution", "."), autoescape=True
    )
    names = " and ".join(saved.name for saved, _ in runs)
    text = environment.get_template("page.html").render(
        names=names, split=split, runs=files.plain(content), bins=BINS
    )
    files.write_text(path, text)


def gif(path: str | os.PathLike, runs: Sequence[tuple[Saved, Measured]]) -> None:
    """Writes the projections as an animation, runs side by side; a shorter run stands at its end."""
    frames = []
    for point in range(max(len(saved.steps) for saved, _ in runs)):
        width = len(runs) * (SIDE + GAP) + GAP
        frame = Image.new("RGB", (width, HEAD + SIDE + GAP), PAPER)
        draw, font = ImageDraw.Draw(frame), ImageFont.load_default(16)
        for number, (saved, measured) in enumerate(runs):
            at = min(point, len(saved.steps) - 1)
            left, palette = GAP + number * (SIDE + GAP), colours(len(saved.classes))
            title = f"{saved.name}: epoch {round(saved.epochs[at], 1):g}, step {saved.steps[at]:,}"
            draw.text((left, 10), title, INK, font)
            for (x, y), label in zip(
                unit_square(measured.positions)[at] * (SIDE - 2 * DOT), saved.labels, strict=True
            ):
                corner = left + x, HEAD + SIDE - 2 * DOT - y
                draw.ellipse((*corner, corner[0] + 2 * DOT, corner[1] + 2 * DOT), palette[label])
        frames.append(frame.quantize(128))
    with files.atomic(path) as out:
        frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=STILL, loop=0)
