"""Charts as SVG text. Colours are CSS variables, so that a page's light and dark hold for them too.

Every function returns one <svg> element; `standalone` makes a file of it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

COLOURS = 8  # --c0 ... --c7 of the style
MOST = 600  # points of a line
FEW = 10  # images of a bin whose share says little
NARROW = 544  # pixels: a wider chart is not shrunk below this on a page

# Shared by the pages and the files: light, and dark where the reader prefers it.
LIGHT = (
    "--paper:#fff;--card:#f7f7f5;--ink:#1c1c1a;--grey:#66655f;--line:#dddcd6;--good:#17764a;--bad:#b3372b;"
    "--c0:#2563b8;--c1:#c2571a;--c2:#2f8a5b;--c3:#8a4bb0;--c4:#b3372b;--c5:#0e8a94;--c6:#a67c00;--c7:#6b6b6b;"
    "--heat:37,99,184"
)
DARK = (
    "--paper:#141517;--card:#1d1f22;--ink:#ececea;--grey:#a2a29c;--line:#383a3e;--good:#6fcf9d;--bad:#ff8f84;"
    "--c0:#7fb2f5;--c1:#f2a36b;--c2:#77cfa0;--c3:#c99bea;--c4:#ff8f84;--c5:#66cfd8;--c6:#e3c25a;--c7:#b0b0b0;"
    "--heat:127,178,245"
)
STYLE = (
    f":root{{color-scheme:light dark;{LIGHT}}}@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}"
    "@media print{:root{color-scheme:light;" + LIGHT + "}}"
    ".chart{font:12px system-ui,sans-serif;max-width:100%;height:auto;display:block}"
    ".chart text{fill:var(--grey)}.chart .ink{fill:var(--ink)}.chart .axis{stroke:var(--line);fill:none}"
    ".chart .title{fill:var(--ink);font-weight:600;font-size:13px}"
    ".chart .halo{fill:var(--ink);stroke:var(--paper);stroke-width:3px;paint-order:stroke;font-weight:600}"
    + "".join(
        f".chart .s{i}{{stroke:var(--c{i})}}.chart .f{i}{{fill:var(--c{i})}}"
        for i in range(COLOURS)
    )
)

LEFT, RIGHT, TOP, BOTTOM = 62, 24, 30, 40  # around the area of a plot, pixels


class Line(NamedTuple):
    name: str
    xs: Sequence[float]
    ys: Sequence[float]


def standalone(svg: str) -> str:
    """The content of an SVG file."""
    head, rest = svg.split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>{rest}\n'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(x: float) -> str:
    """As short as it can be: 5k, 0.25."""
    if abs(x) >= 1_000:
        return f"{x / 1000:,.4g}k" if abs(x) < 1e6 else f"{x / 1e6:,.4g}M"
    return f"{x:.4g}"


def percent(x: float) -> str:
    return f"{100 * x:.4g} %"


class _Plane:
    """Axes with ticks, and where a point lies on them."""

    def __init__(self, title, x, y, xs, ys, size, show_x=number, show_y=number):
        (self.width, self.height), self.xs, self.ys = size, xs, ys
        right, bottom = self.width - RIGHT, self.height - BOTTOM
        self.parts = [f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>']
        for value in ticks(*ys):
            at = self.at(0, value)[1]
            self.parts.append(f'<path class="axis" d="M{LEFT} {at:.1f}H{right}"/>')
            label = escape(show_y(value))
            self.parts.append(
                f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>'
            )
        for value in ticks(*xs):
            at = self.at(value, 0)[0]
            label = escape(show_x(value))
            self.parts.append(
                f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>'
            )
        middle = (LEFT + right) / 2
        self.parts.append(
            f'<text x="{middle}" y="{self.height - 6}" text-anchor="middle">{escape(x)}</text>'
            f'<text x="12" y="{(TOP + bottom) / 2}" text-anchor="middle" '
            f'transform="rotate(-90 12 {(TOP + bottom) / 2})">{escape(y)}</text>'
        )

    def at(self, x: float, y: float) -> tuple[float, float]:
        def share(value, ends):
            return (value - ends[0]) / (ends[1] - ends[0] or 1)

        across = LEFT + share(x, self.xs) * (self.width - RIGHT - LEFT)
        up = self.height - BOTTOM - share(y, self.ys) * (self.height - BOTTOM - TOP)
        return across, up

    def path(self, xs, ys) -> str:
        return "M" + "L".join(
            "{:.1f} {:.1f}".format(*self.at(x, y)) for x, y in zip(xs, ys, strict=True)
        )

    def svg(self, label: str, below: float = 0) -> str:
        return _svg(self.width, self.height + below, label, self.parts)


def _svg(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    name, size = "chart big" if width > NARROW else "chart", f"{width:.0f} {height:.0f}"
    return (
        f'<svg class="{name}" viewBox="0 0 {size}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(label)}">' + "".join(parts) + "</svg>"
    )


def lines(
    series: Sequence[Line],
    title: str,
    x: str,
    y: str,
    *,
    show: Callable[[float], str] = number,
    show_x: Callable[[float], str] = number,
    size: tuple[int, int] = (440, 260),
) -> str:
    """Lines over one pair of axes, with dots where they are few, and a legend where there are several.

    Args:
      series: at most `MOST` points of each are drawn, evenly taken.
      x, y: labels of the axes, with units.
      show, show_x: how a tick of y and of x is written.
    """
    every_x = [v for line in series for v in line.xs]
    every_y = [v for line in series for v in line.ys]
    low, high = min(every_y), max(every_y)
    room = 0.05 * (high - low or abs(high) or 1)
    low, high = low - room, high + room
    if show is percent:  # shares; nearer than half a point the ticks would be the same
        low, high = max(0, min(low, high - 0.005)), min(1, high)
    xs = (min(0, *every_x), max(every_x))
    plane = _Plane(title, x, y, xs, (low, high), size, show_x, show)
    for i, line in enumerate(series):
        keep = np.unique(np.linspace(0, len(line.xs) - 1, min(MOST, len(line.xs))).astype(int))
        px, py = [line.xs[k] for k in keep], [line.ys[k] for k in keep]
        colour, dash = i % COLOURS, ' stroke-dasharray="6 4"' if i >= COLOURS else ""
        plane.parts.append(
            f'<path class="s{colour}" fill="none" stroke-width="2" stroke-linejoin="round"{dash} '
            f'd="{plane.path(px, py)}"/>'
        )
        for a, b in zip(px, py, strict=True) if len(px) <= 40 else ():
            left, top = plane.at(a, b)
            plane.parts.append(
                f'<circle class="f{colour}" cx="{left:.1f}" cy="{top:.1f}" r="3">'
                f"<title>{escape(line.name)}: {escape(show(b))} at {escape(show_x(a))}</title></circle>"
            )
    if len(series) < 2:
        return plane.svg(title)
    left, top = LEFT, size[1] + 8
    for i, line in enumerate(series):
        wide = 30 + _width(line.name)
        if left > LEFT and left + wide > size[0]:
            left, top = LEFT, top + 18
        plane.parts.append(
            f'<circle class="f{i % COLOURS}" cx="{left}" cy="{top}" r="4"/>'
            f'<text class="ink" x="{left + 9}" y="{top + 4}">{escape(line.name)}</text>'
        )
        left += wide
    return plane.svg(title, below=top + 10 - size[1])


def intervals(rows: Sequence[tuple[str, float, float, float]], title: str, x: str) -> str:
    """A point with its interval for each (name, low, value, high), shares between 0 and 1."""
    left, width, each = 20, 440, 40  # names above the lines, so that a phone shows all of it
    low, high = min(r[1] for r in rows), max(r[3] for r in rows)
    room = 0.06 * (high - low or 0.1)
    low, high = max(0, low - room), min(1, high + room)
    height = 34 + each * len(rows) + 40

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (width - 2 * left)

    parts = [f'<text class="title" x="0" y="16">{escape(title)}</text>']
    bottom = height - 36
    for value in ticks(low, high, 6):
        parts.append(f'<path class="axis" d="M{at(value):.1f} 28V{bottom}"/>')
        parts.append(
            f'<text x="{at(value):.1f}" y="{bottom + 16}" text-anchor="middle">{percent(value)}</text>'
        )
    for i, (name, start, value, end) in enumerate(rows):
        y, colour = 34 + each * (i + 0.7), i % COLOURS
        parts.append(
            f'<text class="ink" x="0" y="{y - 13}">{escape(_cut(name, 60))}</text>'
            f'<path class="s{colour}" stroke-width="3" stroke-linecap="round" '
            f'd="M{at(start):.1f} {y}H{at(end):.1f}"/>'
            f'<circle class="f{colour}" cx="{at(value):.1f}" cy="{y}" r="6">'
            f"<title>{escape(name)}: {percent(value)} ({percent(start)} to {percent(end)})</title></circle>"
        )
    parts.append(f'<text x="{width / 2}" y="{height - 4}" text-anchor="middle">{escape(x)}</text>')
    return _svg(width, height, title, parts)


def reliability(found) -> str:
    """The diagram of a `fgvc_jax.metrics.calibration.Reliability`; bars of few images are pale."""
    plane = _Plane(
        "Reliability", "confidence of the answer", "share that is right", (0, 1), (0, 1), (440, 300),
        percent, percent,
    )  # fmt: skip
    for i, count in enumerate(found.count):
        if not count:
            continue
        (left, top), (right, bottom) = (
            plane.at(found.edges[i], found.accuracy[i]), plane.at(found.edges[i + 1], 0),
        )  # fmt: skip
        expected = plane.at(0, found.confidence[i])[1]
        sure, right_ones = percent(found.confidence[i]), percent(found.accuracy[i])
        text = f"{int(count):,} images, confidence {sure}, right {right_ones}"
        plane.parts.append(
            f'<rect class="f0" opacity="{0.25 if count < FEW else 0.75}" x="{left + 1:.1f}" '
            f'y="{top:.1f}" width="{right - left - 2:.1f}" '
            f'height="{max(bottom - top, 0):.1f}"><title>{text}</title></rect>'
            f'<path class="s4" stroke-width="2" d="M{left + 1:.1f} {expected:.1f}H{right - 1:.1f}"/>'
        )
    plane.parts.append(
        '<path fill="none" style="stroke:var(--ink)" stroke-dasharray="4 4" opacity=".6" '
        f'd="{plane.path((0, 1), (0, 1))}"/>'
    )
    return plane.svg("Reliability diagram")


def matrix(counts_CC: np.ndarray, classes: Sequence[str]) -> str:
    """The confusion matrix: a row for each true class, coloured by the share of that class."""
    n = len(classes)
    cell = min(34, max(12, 660 // n))
    margin = 12 + 6.4 * min(22, max(map(len, classes)))
    width, height = margin + cell * n + 8, margin + cell * n + 26
    share = counts_CC / np.maximum(counts_CC.sum(1, keepdims=True), 1)
    small = min(11, cell - 2)
    parts = [f'<text x="0" y="{height - 6:.0f}">rows: the true class; columns: the answer</text>']
    for i, name in enumerate(classes):
        text, middle = escape(_cut(name, 22)), margin + cell * (i + 0.5)
        parts.append(
            f'<text class="ink" font-size="{small}" x="{margin - 6:.0f}" y="{middle + small / 3:.1f}" '
            f'text-anchor="end">{text}</text>'
            f'<text class="ink" font-size="{small}" text-anchor="start" '
            f'transform="translate({middle + small / 3:.1f} {margin - 6:.0f}) rotate(-90)">{text}</text>'
        )
    for i in range(n):
        for j in range(n):
            count = int(counts_CC[i, j])
            x, y = margin + cell * j, margin + cell * i
            if not count:
                if i == j:
                    parts.append(
                        f'<rect class="axis" x="{x:.0f}" y="{y:.0f}" width="{cell - 1}" height="{cell - 1}"/>'
                    )
                continue
            kind = "--good" if i == j else "--bad"
            what = f"{classes[i]} answered as {classes[j]}: {count} of {int(counts_CC[i].sum())}"
            parts.append(
                f'<rect x="{x:.0f}" y="{y:.0f}" width="{cell - 1}" height="{cell - 1}" '
                f'style="fill:var({kind})" opacity="{0.12 + 0.88 * share[i, j]:.2f}">'
                f"<title>{escape(what)}</title></rect>"
            )
            if cell >= 20:
                tone = "paper" if share[i, j] > 0.45 else "ink"
                parts.append(
                    f'<text x="{x + cell / 2 - 0.5:.1f}" y="{y + cell / 2 + 3.5:.1f}" font-size="10" '
                    f'text-anchor="middle" pointer-events="none" style="fill:var(--{tone})">{count}</text>'
                )
    return _svg(width, height, "Confusion matrix", parts)


def points(
    xy_N2: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    wrong: np.ndarray,
    notes: Sequence[str],
) -> str:
    """Points coloured by class, those answered wrongly with a ring; up to 60 classes have their names."""
    width, height, edge = 900, 640, 40
    low, high = xy_N2.min(0), xy_N2.max(0)
    place = (xy_N2 - low) / np.maximum(high - low, 1e-12)
    place = edge + place * (np.array([width, height]) - 2 * edge)
    parts = []
    for i in np.argsort(wrong, kind="stable"):  # rings on top
        hue = f"hsl({labels[i] * 137.508 % 360:.0f} {55 + labels[i] % 3 * 12}% {48 + labels[i] % 2 * 8}%)"
        ring = ' stroke="var(--bad)" stroke-width="1.5"' if wrong[i] else ""
        parts.append(
            f'<circle cx="{place[i, 0]:.1f}" cy="{place[i, 1]:.1f}" r="4.5" fill="{hue}" '
            f'fill-opacity=".8"{ring}>'
            f"<title>{escape(notes[i])}</title></circle>"
        )
    present = np.unique(labels)
    if len(present) <= 60:
        names = [_cut(classes[label], 22) for label in present]
        middles = [np.median(place[labels == label], axis=0) for label in present]
        for name, (x, y) in zip(names, _apart(middles, names, width), strict=True):
            parts.append(
                f'<text class="halo" x="{x:.0f}" y="{y:.0f}" text-anchor="middle">{escape(name)}</text>'
            )
    return _svg(width, height, "Embedding", parts)


def _apart(middles: Sequence[np.ndarray], names: Sequence[str], width: float) -> list[tuple]:
    """Where names stand, each as near its place as the earlier ones leave room, above or below it."""
    placed: list[tuple] = []
    for (x, y), half in zip(middles, (_width(name) / 2 + 2 for name in names), strict=True):
        x = np.clip(x, half, width - half)
        for step in range(2 * len(names)):
            tried = y + 14 * (-1) ** step * ((step + 1) // 2)
            if all(abs(x - a) >= half + b or abs(tried - c) >= 13 for a, c, b in placed):
                break
        placed.append((x, tried, half))
    return [(x, y) for x, y, _ in placed]


def differences(rows: Sequence[tuple[str, float]], title: str, x: str) -> str:
    """Signed bars (name, difference), shares; to the right is better."""
    left, width, each, room = 156, 480, 20, 46  # room: for the number beyond a bar
    values = [value for _, value in rows]
    low, high = min(0, *values), max(0, *values)
    scale = (width - left - 2 * room) / (high - low or 0.01)
    height, middle = 34 + each * len(rows) + 36, left + room - low * scale
    parts = [
        f'<text class="title" x="0" y="16">{escape(title)}</text>',
        f'<path class="axis" d="M{middle} 28V{height - 34}"/>',
        f'<text x="{middle}" y="{height - 8}" text-anchor="middle">{escape(x)}</text>',
    ]
    for i, (name, value) in enumerate(rows):
        y, long = 32 + each * i, scale * value
        parts.append(
            f'<text class="ink" x="{left - 12}" y="{y + 12}" text-anchor="end">'
            f"{escape(_cut(name, 22))}</text>"
            f'<rect x="{min(middle, middle + long):.1f}" y="{y + 2}" width="{abs(long):.1f}" '
            f'height="{each - 5}" style="fill:var({"--good" if value > 0 else "--bad"})" opacity=".85"/>'
            f'<text x="{middle + long + (5 if value >= 0 else -5):.1f}" y="{y + 12}" '
            f'text-anchor="{"start" if value >= 0 else "end"}">{100 * value:+.1f}</text>'
        )
    return _svg(width, height, title, parts)


def _width(text: str) -> float:
    """Pixels of a text at the size of the charts, rather too many than too few."""
    return sum(9 if letter.isupper() else 7.2 for letter in text)


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
