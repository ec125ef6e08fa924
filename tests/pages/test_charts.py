"""Charts: well formed, to scale, and safe with any name."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

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
