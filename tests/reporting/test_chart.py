"""Charts of a page have marks at the right places with the right tooltips, page colours, unique ids, and space for names."""

from __future__ import annotations

import re
from html import unescape
from xml.etree import ElementTree

import numpy as np
import pytest

from afl.reporting.pages.chart import PALETTE, Chart, dot_rows, stacked_bars
from afl.reporting.pages.dataset import _class_bars
from afl.reporting.pages.page import Section, document
from tests.reporting.browser import visit


def tree(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(chart.svg())


def marks(root: ElementTree.Element) -> dict[str, tuple[float, float]]:
    """The position of each marker by its tooltip, in pixels of the chart."""
    return {
        use.find("title").text: (float(use.get("x")), float(use.get("y")))
        for use in root.iter("use")
        if use.find("title") is not None
    }


def test_marks_have_the_position_and_tooltip_of_their_values():
    chart = Chart("t", left=50)
    chart.points([1, 10, 100], [0.0, None, 4.0], "s1", ["low", "gap", "high"], "dot", "-")
    chart.span("x", 1, 100, log=True)
    chart.span("y", 0, 4)
    found = marks(tree(chart))
    # The frame extends from 50 to 330 - 12 pixels horizontally and from 230 - 36 up to 26 pixels vertically.
    assert found.keys() == {"low", "high"}
    assert found["low"] == pytest.approx((50, 194)) and found["high"] == pytest.approx((318, 26))


def test_a_line_breaks_at_gaps():
    chart = Chart("t")
    chart.points([0, 1, 2, 3], [1.0, None, 1.0, 1.5], "s1", "a", line="-")
    (line,) = [node for node in tree(chart).iter("g") if node.get("class") == "line"]
    assert line.find("title").text == "a" and line.find("path").get("d").count("M") == 2


def test_colours_are_variables_of_the_page():
    chart = Chart("t", "x", "y")
    for color in PALETTE:
        chart.points([0, 1], [0, 1], color, color, line="-")
    text = chart.svg()
    assert not re.findall(r"#[0-9a-f]{6}\b", text.replace('href="#', ""))
    assert {"ink", "soft", "s0", "s4", "r", "grid"} <= set(re.findall(r"var\(--(\w+)\)", text))


def test_names_are_drawn_as_text_and_not_as_markup_or_formulas():
    chart = dot_rows("Costs <b> $x^2$", ["tin <can> $y$"], -1, 1, "points of $AP$")
    chart.points([0.5], [0], "s1", ["<i>note</i> & more"], "dot")
    text = chart.svg()
    assert "<b>" not in text and "<can>" not in text and "<i>" not in text
    words = [unescape(word) for word in re.findall(r"<text[^>]*>([^<]*)</text>", text)]
    assert {"Costs <b> $x^2$", "tin <can> $y$", "points of $AP$"} <= set(words)
    assert list(marks(ElementTree.fromstring(text))) == ["<i>note</i> & more"]


def test_charts_of_a_page_have_unique_ids_and_a_chart_is_reproducible():
    first, second = Chart("first"), Chart("second")
    for chart in (first, second):
        chart.points([0, 1], [0, 1], "s1", ["a", "b"], "dot", "-")
    ids = [set(re.findall(r' id="(\w+)"', chart.svg())) for chart in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    assert first.svg() == first.svg()


def test_bars_are_stacked_and_show_their_shares():
    chart = stacked_bars("Shares", [("fl", [("r", 1.0, "rare", 0.25), ("f", 0.45, "frequent", 0.75)])])
    widths = {}
    for node in tree(chart).iter("g"):
        if node.find("title") is not None:
            xs = [float(x) for x in re.findall(r"[ML] ([\d.]+)", node.find("path").get("d"))]
            widths[node.find("title").text] = max(xs) - min(xs)
    assert widths["frequent"] == pytest.approx(3 * widths["rare"], rel=1e-3)
    assert sum(widths.values()) == pytest.approx(330 - 12 - 104, abs=0.1)


def test_names_of_classes_are_written_on_their_bars():
    drawn = _class_bars(["cat", "a<b"], ["r", "f"], np.array([3, 9]), ["cat: 3", "a<b: 9"]).svg()
    named = re.findall(r'class="onbar">.*?<text[^>]*>([^<]*)</text>', drawn, re.DOTALL)
    assert named == ["cat", "a&lt;b"] and "<title>a&lt;b: 9</title>" in drawn


def test_long_names_of_rows_have_space(tmp_path):
    name = "ablation/afl_balanced_instances_tau025"
    dots = dot_rows("Differences", [name], -2, 2, "points of AP")
    dots.points([1.0], [0], "s1", ["note"], "dot")
    shares = stacked_bars("Shares", [(name, [("r", 1.0, "rare", 0.4), ("f", 1.0, "frequent", 0.6)])])
    page = tmp_path / "page.html"
    content = {"text": "", "charts": [dots, shares]}
    page.write_text(
        document("Names", [Section("names", "Names", "Names", "objects.html.j2", content)]), "utf-8"
    )
    seen = visit(page, tmp_path)
    assert seen["charts"] == 2 and seen["spilled"] == []
