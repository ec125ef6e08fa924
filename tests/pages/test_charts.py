"""Charts: well formed, to scale, and safe with any name."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import needs_browser, visit

from fgvc_jax.metrics.calibration import reliability
from fgvc_jax.pages import charts

NASTY = '<script>alert("x")</script> & "é"'


def parsed(svg):
    return ElementTree.fromstring(svg)


def test_ticks_are_round_and_inside():
    assert charts.ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert charts.ticks(0.31, 0.47) == pytest.approx([0.35, 0.4, 0.45])
    assert charts.ticks(3, 3) == [3]
    for low, high in ((-7, 12345), (1e-7, 3e-7), (0.99, 1.0)):
        found = charts.ticks(low, high)
        assert 2 <= len(found) <= 11 and low - 1e-9 <= found[0] and found[-1] <= high * (1 + 1e-9)


def test_a_line_is_to_scale():
    """Equal steps of the data are equal steps on paper, and more is higher up."""
    svg = charts.lines([charts.Line("a", [0, 5, 10], [1.0, 2.0, 4.0])], "t", "x", "y")
    path = next(p for p in parsed(svg).iter("path") if p.get("class") == "s0").get("d")
    x, y = np.array([part.split() for part in re.split("[ML]", path)[1:]], float).T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert 2 * (y[0] - y[1]) == pytest.approx(y[1] - y[2], abs=0.3)


@pytest.mark.parametrize("shares", [[0], [1], [0.99975, 0.9999, 1], [0.2, 0.7]])
def test_ticks_of_shares_are_shares_and_differ(shares):
    line = charts.Line("a", range(len(shares)), shares)
    svg = charts.lines([line], "t", "x", "y", show=charts.percent)
    said = [t.text for t in parsed(svg).iter("text") if t.text.endswith(" %")]
    values = [float(text.removesuffix(" %")) for text in said]
    assert len(set(said)) == len(said) >= 2
    assert min(values) >= 0 and max(values) <= 100


def test_long_lines_are_thinned():
    many = list(range(100_000))
    svg = charts.lines([charts.Line("a", many, many)], "t", "x", "y")
    assert len(svg) < 50_000


def every_chart():
    counts = np.array([[3, 1], [0, 4]])
    return [
        charts.lines([charts.Line(NASTY, [0, 1], [0, 1]), charts.Line("b", [0], [2])], NASTY, NASTY, NASTY),
        charts.intervals([(NASTY, 0.4, 0.5, 0.6), ("b", 0.5, 0.5, 0.5)], NASTY, "x"),
        charts.reliability(reliability([0.2, 0.9, 0.95], [0, 1, 1])),
        charts.matrix(counts, [NASTY, "b"]),
        charts.points(np.eye(3, 2), np.array([0, 1, 1]), [NASTY, "b"], np.array([0, 1, 0]), [NASTY] * 3),
        charts.differences([(NASTY, 0.25), ("b", -0.5)], NASTY, "points"),
    ]  # fmt: skip


@pytest.mark.parametrize("svg", every_chart())
def test_every_chart_is_one_well_formed_element(svg):
    assert "<script" not in svg
    assert parsed(svg).tag == "svg"
    file = ElementTree.fromstring(charts.standalone(svg))
    assert file.tag == "{http://www.w3.org/2000/svg}svg"


def test_the_matrix_says_each_count():
    titles = [
        t.text for t in parsed(charts.matrix(np.array([[3, 1], [0, 4]]), ["a", "b"])).iter("title")
    ]
    assert titles == [
        "a answered as a: 3 of 4",
        "a answered as b: 1 of 4",
        "b answered as b: 4 of 4",
    ]


def test_bars_of_differences_grow_with_them():
    rectangles = list(parsed(charts.differences([("a", 0.2), ("b", -0.4)], "t", "x")).iter("rect"))
    widths = [float(r.get("width")) for r in rectangles]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert "--good" in rectangles[0].get("style") and "--bad" in rectangles[1].get("style")


def test_bars_of_one_sign_use_the_whole_width():
    """With nothing above 0 the bars have the room of both signs."""
    names = ["a", "b"]
    for values in ((-0.1, -0.4), (0.1, 0.4)):
        svg = charts.differences(list(zip(names, values, strict=True)), "t", "x")
        whole = float(parsed(svg).get("width"))
        assert max(float(r.get("width")) for r in parsed(svg).iter("rect")) > 0.4 * whole
        number = next(t for t in parsed(svg).iter("text") if t.text == f"{100 * values[1]:+.1f}")
        assert 0 < float(number.get("x")) < whole


def test_bars_of_few_images_are_pale():
    sure = [0.15] * 3 + [0.85] * 40
    bars = list(parsed(charts.reliability(reliability(sure, [1] * 43))).iter("rect"))
    few, many = (float(bar.get("opacity")) for bar in bars)
    assert few < many / 2


def test_intervals_fit_a_phone():
    """A wider chart is scrolled there, and the points of the main result would be out of sight."""
    svg = charts.intervals([("a name of thirty letters or so", 0.4, 0.5, 0.6)], "t", "x")
    assert float(parsed(svg).get("width")) <= charts.NARROW and "big" not in parsed(svg).get(
        "class"
    )


@needs_browser
def test_texts_do_not_lie_on_each_other(tmp_path):
    """As the browser measures them: names of classes in one place, entries of a legend in capitals."""
    names = [f"Long-Name-{i}" for i in range(6)] + ["WIDE CAPITALS"]
    same = np.repeat(np.array([[0.0, 0.0], [1.0, 1.0]]), (6, 1), axis=0)
    points = charts.points(same, np.arange(7), names, np.zeros(7, bool), [""] * 7)
    lines = [charts.Line(name, [0, 1], [0, 1]) for name in ("AUROC", "MAP@R", "WWWWWWWW")]
    page = tmp_path / "charts.html"
    legend = charts.lines(lines, "t", "x", "y")
    page.write_text(f"<style>{charts.STYLE}</style>{points}<hr>{legend}")
    script = """[...document.querySelectorAll('svg')].map(svg => [...svg.querySelectorAll('text, circle')]
      .filter(x => x.matches('.halo, .ink') || svg.getAttribute('aria-label') === 't' && x.matches('[r="4"]'))
      .map(x => x.getBBox()).map(b => [b.x, b.y, b.width, b.height]))"""
    for boxes in visit(page, act=lambda tab: tab.evaluate(script)).result:
        assert len(boxes) >= 6
        for i, (x, y, wide, high) in enumerate(boxes):
            for a, b, w, h in boxes[:i]:
                # Glyphs fill a line's box but for some 2 pixels above and below.
                apart = x >= a + w or a >= x + wide or y + 2 >= b + h - 2 or b + 2 >= y + high - 2
                assert apart, (boxes[i], (a, b, w, h))
