"""The figure of the tail's gain against the head's loss, from differences computed by hand."""

from __future__ import annotations

import pytest

from afl.reporting import TableSpec, build_table
from afl.reporting.trade import draw_trade, trades

SPEC = TableSpec(
    name="remedies", detectors=["fcos", "retinanet"], losses=["fl", "rfs", "eql"], datasets=["shapes"], seeds=[0, 1],
    metrics=["AP", "AP_r", "AP_f"], baseline="fl",
)  # fmt: skip


def records(record):
    figures = {
        ("fl", 0): (0.10, 0.50),
        ("fl", 1): (0.12, 0.52),
        ("rfs", 0): (0.16, 0.49),
        ("rfs", 1): (0.16, 0.49),
    }
    return [
        record(detector, loss, seed, metrics={"AP": 0.3, "AP_r": rare + more, "AP_f": frequent + more})
        for (loss, seed), (rare, frequent) in figures.items()
        for detector, more in (("fcos", 0.0), ("retinanet", 0.1))
    ]


def test_points_are_mean_differences_over_detectors_and_seeds(record):
    found = trades(build_table(records(record), SPEC))
    assert list(found) == ["rfs"]  # nothing is known of eql
    assert found["rfs"]["r"][0] == pytest.approx(5.0) and found["rfs"]["f"][0] == pytest.approx(-2.0)


def test_every_loss_is_a_labelled_point_and_a_table_without_one_is_refused(record):
    (axis,) = draw_trade(build_table(records(record), SPEC)).axes
    (label,) = axis.texts
    assert label.get_text() == "rfs" and label.xy == pytest.approx((-2.0, 5.0))
    with pytest.raises(ValueError, match="no loss with AP_r and AP_f"):
        draw_trade(build_table(records(record)[:4], SPEC))
