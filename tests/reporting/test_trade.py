"""The figure of gain on rare classes against loss on frequent classes, compared with manually computed differences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from afl.reporting import TableSpec, build_table
from afl.reporting.figures.trade import draw_trade, trades

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
    # One detector alone has a third seed of rfs.
    places = [("fcos", "fl"), ("retinanet", "fl"), ("fcos", "rfs")]
    third = [record(*place, 2, metrics={"AP": 0.3, "AP_r": 0.9, "AP_f": 0.9}) for place in places]
    table = build_table([*records(record), *third], replace(SPEC, seeds=[0, 1, 2]))
    tail, head, found = trades(table)
    assert (tail, head) == ("AP_r", "AP_f") and list(found) == ["rfs"]  # eql has no run
    of_tail, of_head = found["rfs"]
    assert of_tail.mean == pytest.approx(0.05) and of_head.mean == pytest.approx(-0.02)
    # Differences by seed 0.06 and 0.04 on both detectors: deviation 0.0141421, two degrees of freedom, four differences.
    assert of_tail.half == pytest.approx(4.30265 * 0.0141421 / 4**0.5, rel=1e-4)


def test_every_loss_is_a_labelled_point_and_a_table_without_points_is_rejected(record):
    (axis,) = draw_trade(build_table(records(record), SPEC)).axes
    (label,) = axis.texts
    assert label.get_text() == "rfs" and label.xy == pytest.approx((-2.0, 5.0))
    with pytest.raises(ValueError, match="has no loss with AP"):
        draw_trade(build_table(records(record)[:4], SPEC))


def test_names_of_close_points_do_not_overlap(record):
    losses = [f"loss{k}" for k in range(8)]
    made = [
        record("fcos", loss, metrics={"AP": 0.3, "AP_r": 0.2 + k / 1e4, "AP_f": 0.5 - k / 1e4})
        for k, loss in enumerate(["fl", *losses])
    ]
    table = build_table(
        made, TableSpec("t", ["fcos"], ["fl", *losses], ["shapes"], [0], ["AP", "AP_r", "AP_f"])
    )
    (axis,) = draw_trade(table).axes
    boxes = [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == 8
    for i, box in enumerate(boxes):
        assert not box.count_overlaps(boxes[:i])


def test_a_figure_of_one_seed_states_that_it_has_no_intervals_and_its_title_fits(record):
    one = replace(SPEC, seeds=[0], label="Remedies for long tails", losses=["fl", "rfs", "eql", "afl"])
    afl = record("fcos", "afl", 0, metrics={"AP": 0.3, "AP_r": 0.2, "AP_f": 0.5})
    made = [*records(record), afl, replace(afl, detector="retinanet", key="another")]
    figure = draw_trade(build_table(made, one))
    (title,) = [text for text in figure.texts if text.get_text()]
    assert "mean over 2 detectors, one seed: no intervals (AFL: a reconstruction)" in title.get_text()
    box = title.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    assert "no intervals" in draw_trade(build_table(records(record), one)).get_suptitle()
    assert "no intervals" not in draw_trade(build_table(records(record), SPEC)).get_suptitle()
