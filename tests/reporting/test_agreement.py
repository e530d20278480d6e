"""A table compared with the committed one: the verdicts equal those of a manually computed two-sample interval."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from afl.reporting import TableSpec, build_table
from afl.reporting.agreement import Agreement, agreements, other_protocol, to_markdown, to_rich
from afl.tracking import FINISHED, Record


def record(loss: str, seed: int, ap: float, **protocol: str) -> Record:
    return Record(
        key=f"shapes-fcos-{loss}-s{seed}", status=FINISHED, dataset="shapes", detector="fcos", loss=loss, seed=seed, config={},
        protocol=protocol or {"schedule": "24epochs"}, metrics={"AP": ap},
    )  # fmt: skip


def table(records: list[Record], *, seeds: list[int]):
    spec = TableSpec(
        name="shapes",
        detectors=["fcos"],
        losses=["fl", "afl"],
        datasets=["shapes"],
        seeds=seeds,
        metrics=["AP"],
    )
    return build_table(records, spec)


KEPT = [
    record("fl", 0, 0.50), record("fl", 1, 0.52), record("fl", 2, 0.54),
    record("afl", 0, 0.60), record("afl", 1, 0.60), record("afl", 2, 0.63),
]  # fmt: skip


def test_noise_is_pooled_over_the_losses_of_a_detector():
    own = table([record("fl", 7, 0.59), record("afl", 7, 0.53)], seeds=[7])
    fl, afl = agreements(own, table(KEPT, seeds=[0, 1, 2]))
    # Sums of squares 8e-4 and 6e-4 with four degrees of freedom; t(0.975, 4) = 2.7764; one seed against three.
    allowed = 2.7764 * (14e-4 / 4) ** 0.5 * (1 + 1 / 3) ** 0.5
    assert fl.allowed == pytest.approx(allowed, rel=1e-4) == afl.allowed
    assert (fl.verdict, afl.verdict) == ("outside noise", "outside noise")  # 0.07 and 0.08 off, 0.06 allowed
    own = table([record("fl", 7, 0.57)], seeds=[7])
    (fl,) = agreements(own, table(KEPT, seeds=[0, 1, 2]))
    assert (fl.own, fl.kept, fl.verdict) == (0.57, pytest.approx(0.52), "within noise")
    assert "| shapes | fcos | fl | AP | 57.0 | 52.0 | within noise |" in to_markdown([fl])


def test_the_same_runs_are_equal_and_single_seeds_leave_the_noise_unknown():
    kept = table(KEPT, seeds=[0, 1, 2])
    assert {one.verdict for one in agreements(kept, kept)} == {"equal"}
    single = table(KEPT[:1], seeds=[0])
    (one,) = agreements(table([record("fl", 0, 0.51)], seeds=[0]), single)
    assert one.verdict == "noise unknown"


def test_data_sets_and_metrics_of_one_table_alone_are_left_out():
    kept = table(KEPT, seeds=[0, 1, 2])
    runs = [
        replace(KEPT[0], dataset=name, metrics={"AP": 0.5, "AP50": 0.7}, key=f"{name}-fcos-fl-s0")
        for name in ("other", "shapes")
    ]
    wider = replace(kept.spec, datasets=["other", "shapes"], metrics=["AP50", "AP"], seeds=[0])
    (found,) = agreements(build_table(runs, wider), kept)
    assert (found.dataset, found.metric, found.own) == ("shapes", "AP", 0.5)


def test_a_different_protocol_is_named():
    own = table([record("fl", 0, 0.3, schedule="2epochs")], seeds=[0])
    assert other_protocol(own, table(KEPT, seeds=[0, 1, 2])) == ["schedule: 2epochs, committed 24epochs"]
    assert other_protocol(table(KEPT[:1], seeds=[0]), table(KEPT, seeds=[0, 1, 2])) == []


@pytest.mark.parametrize(
    ("width", "frames"),
    [
        (200, [["AP", "AP_r"]]),  # both metrics need 3 + 9 and twice 8 + 12 + 15 characters
        (82, [["AP", "AP_r"]]),
        (81, [["AP"], ["AP_r"]]),
        (47, [["AP"], ["AP_r"]]),  # the two values of a metric and its verdict in one frame
    ],
)
def test_both_values_and_the_verdict_of_a_metric_are_in_one_frame(width, frames):
    found = [
        Agreement("shapes", "fcos", "afl", metric, own=0.31, kept=0.32, allowed=0.02, equal=False)
        for metric in ("AP", "AP_r")
    ]
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(to_rich(found, ("AP", "AP_r")))
    lines = console.file.getvalue().splitlines()
    heads = [line.split() for line in lines if line.strip().startswith("AP")]
    assert heads == [[metric for metric in frame for _ in range(3)] for frame in frames]
    rows = [line.split() for line in lines if line.strip().startswith("fcos afl")]
    assert rows == [["fcos", "afl", *(["31.0", "32.0", "within", "noise"] * len(frame))] for frame in frames]
    assert max(map(len, lines)) <= width


def test_a_terminal_too_narrow_for_a_metric_shows_its_columns_one_by_one():
    found = [Agreement("shapes", "fcos", "afl", "AP", own=0.31, kept=0.32, allowed=0.02, equal=False)]
    console = Console(width=30, file=io.StringIO(), force_terminal=False)
    console.print(to_rich(found, ("AP",)))
    lines = console.file.getvalue().splitlines()
    rows = [" ".join(line.split()[2:]) for line in lines if line.strip().startswith("fcos afl")]
    assert rows == ["31.0", "32.0", "within noise"]
    assert max(map(len, lines)) <= 30
