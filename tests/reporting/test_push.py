"""The figure of the push compared with manually computed ratios and gains."""

from __future__ import annotations

import pytest

from afl.reporting import TableSpec, build_table
from afl.reporting.figures.push import draw_push
from afl.reporting.frame import frame


def run(record, loss, push, ap):
    curves = {f"gradient/one/positive/{group}/sum": [push, 2 * push] for group in "rcf"}
    metrics = {"AP": ap, "AP_r": ap, "AP_c": ap, "AP_f": ap}
    return record("fcos", loss, metrics=metrics, gradient_dynamics={"steps": [5, 10], "curves": curves})


def drawn(record, losses):
    runs = [run(record, "fl", 2.0, 0.3), *(run(record, f"l{k}", 2.0 + k, 0.3 + k / 100) for k in range(7))]
    metrics = ["AP", "AP_r", "AP_c", "AP_f"]
    table = build_table(
        runs, TableSpec("t", ["fcos"], ["fl", *(f"l{k}" for k in range(7))], ["shapes"], [0], metrics)
    )
    return draw_push({"first": (table, frame(table.cells))}, losses)


def test_lines_are_ratios_and_dots_are_gains(record):
    figure = drawn(record, ["l4"])
    panel, side = figure.axes
    assert "in logged batches" in figure.get_suptitle()
    _, *groups = panel.lines
    for line in groups:
        assert line.get_ydata() == pytest.approx([3.0, 3.0]) and line.get_xdata() == pytest.approx([25, 75])
    assert [dot.get_xdata()[0] for dot in side.lines[1:]] == pytest.approx([4.0, 4.0, 4.0])


def test_without_names_every_loss_has_a_panel_and_each_row_names_its_table(record):
    *panels, side = drawn(record, []).axes
    assert [panel.get_title() for panel in panels] == [f"l{k}" for k in range(7)]
    assert [bool(panel.get_ylabel()) for panel in panels] == [True, *[False] * 5, True]
    assert [text.get_text() for text in side.get_yticklabels()] == [f"l{k}" for k in range(7)]
