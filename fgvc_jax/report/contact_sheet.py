"""A PNG of the hardest mined pairs, to look at."""

import os
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fgvc_jax.mining.pairs import Pairs

THUMB = 176  # side of a picture, pixels
GAP = 6  # between the two pictures of a pair
SPACE = 28  # between pairs, and around the sheet
CAPTION = 66  # height of the names (up to two lines) and the similarity under a pair
HEAD = 104  # height of the title
PAPER, INK, GREY = "#ffffff", "#1a1a1a", "#6b6b6b"
SAME, DIFFERENT = "#1b7f4d", "#b3261e"


def contact_sheet(
    pairs: Pairs,
    read_query: Callable[[int], np.ndarray],
    read_neighbour: Callable[[int], np.ndarray],
    query_names: Sequence[str],
    neighbour_names: Sequence[str],
    path: str | os.PathLike,
    *,
    rows: int = 6,
    title: str = "Hardest mined pairs",
) -> None:
    """Draws the hardest positives on the left, the hardest negatives on the right.

    Hard positives are the least similar of the same class, hard negatives the most similar of
    different classes. For variety a query, a neighbour and an (unordered) pair of classes come once
    each as long as there are others.

    Args:
      pairs: the mined pairs.
      read_query, read_neighbour: row -> image, uint8 [H, W, 3].
      query_names, neighbour_names: the class name of each row.
      path: the PNG file to write.
      rows: rows of pairs; each holds two positives and two negatives.
      title: printed above.
    """
    positive = np.flatnonzero(pairs.label == 1)
    negative = np.flatnonzero(pairs.label == 0)
    sections = (
        ("Same class, least similar", SAME, positive[_order(pairs.similarity[positive])]),
        (
            "Different classes, most similar",
            DIFFERENT,
            negative[_order(-pairs.similarity[negative])],
        ),
    )
    chosen = [varied(o, pairs, query_names, neighbour_names, 2 * rows) for *_, o in sections]
    rows = max(1, *((len(c) + 1) // 2 for c in chosen))
    pair_width, pair_height = 2 * THUMB + GAP, THUMB + CAPTION
    width = 5 * SPACE + 4 * pair_width + SPACE
    sheet = Image.new("RGB", (width, HEAD + rows * (pair_height + SPACE)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((SPACE, 20), title, INK, _font(26))
    counts = f"{len(pairs.query):,} pairs: {len(positive):,} same, {len(negative):,} different"
    draw.text((width - SPACE, 30), counts, GREY, _font(16), anchor="ra")
    for i, (heading, colour, _) in enumerate(sections):
        left = SPACE + i * (2 * pair_width + 3 * SPACE)
        draw.text((left, 64), heading, colour, _font(20))
        draw.line((left, 93, left + 2 * pair_width + SPACE, 93), colour, 2)
        if not chosen[i]:
            draw.text((left, HEAD + 8), "none", GREY, _font(16))
        for j, p in enumerate(chosen[i]):
            x = left + (j % 2) * (pair_width + SPACE)
            y = HEAD + (j // 2) * (pair_height + SPACE)
            query, neighbour = int(pairs.query[p]), int(pairs.neighbour[p])
            _pair(
                sheet,
                (x, y),
                (read_query(query), query_names[query]),
                (read_neighbour(neighbour), neighbour_names[neighbour]),
                float(pairs.similarity[p]),
                colour,
            )
    sheet.save(path, "PNG")


def _order(similarity: np.ndarray) -> np.ndarray:
    return np.argsort(similarity, kind="stable")


def varied(
    order: np.ndarray,
    pairs: Pairs,
    query_names: Sequence[str],
    neighbour_names: Sequence[str],
    count: int,
) -> list[int]:
    """The first `count` of `order`, those that repeat nothing before those that do."""
    seen, fresh, repeated = set(), [], []
    for p in order:
        q, n = int(pairs.query[p]), int(pairs.neighbour[p])
        marks = {("query", q), ("neighbour", n), frozenset((query_names[q], neighbour_names[n]))}
        (repeated if marks & seen else fresh).append(p)
        seen |= marks
        if len(fresh) == count:
            break
    return (fresh + repeated)[:count]


def _pair(
    sheet: Image.Image,
    corner: tuple[int, int],
    query: tuple[np.ndarray, str],
    neighbour: tuple[np.ndarray, str],
    similarity: float,
    colour: str,
) -> None:
    draw = ImageDraw.Draw(sheet)
    x, y = corner
    font, lines = _font(15), 1
    for i, (pixels, name) in enumerate((query, neighbour)):
        left = x + i * (THUMB + GAP)
        sheet.paste(_thumbnail(pixels), (left, y))
        text = _wrap(draw, name, font)
        draw.text((left, y + THUMB + 5), text, INK, font)
        lines = max(lines, text.count("\n") + 1)
    draw.text((x, y + THUMB + 8 + 18 * lines), f"similarity {similarity:.3f}", colour, _font(14))


def _thumbnail(pixels: np.ndarray) -> Image.Image:
    """The central square; the pixels of tiny pictures stay visible."""
    image = Image.fromarray(np.asarray(pixels, np.uint8)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    sampling = Image.Resampling.LANCZOS if side > THUMB // 2 else Image.Resampling.NEAREST
    return image.resize((THUMB, THUMB), sampling, box=box)


def _wrap(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont) -> str:
    """At most two lines, each as wide as a picture; the second is cut where it is longer."""
    cut = _fitting(draw, text, font)
    if cut == len(text):
        return text
    words = max(text.rfind(mark, 0, cut) for mark in " _-") + 1
    cut = words or cut
    first, rest = text[:cut].rstrip(), text[cut:]
    end = _fitting(draw, rest, font)
    return f"{first}\n{rest if end == len(rest) else rest[: end - 2] + '...'}"


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont) -> int:
    """How many characters fit under a picture."""
    return max(i for i in range(len(text) + 1) if draw.textlength(text[:i], font) <= THUMB)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)
