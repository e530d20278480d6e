"""Classes one by one against means taken by hand, and against the AP of a real table, which is their mean."""

from __future__ import annotations

import pytest

from afl.reporting import TableSpec, build_table
from afl.reporting.classes import most_moved, rows_of, to_markdown
from scripts.kept import kept_table
from scripts.report import main
from scripts.report_documents import ROOT

GROUPS = {"rov": "f", "eel": "c", "net": "c", "cup": "r"}


def table_of(record, values, groups=(GROUPS, GROUPS, GROUPS)):
    records = [
        record(
            *cell, metrics={"AP": 0.1}, per_class=dict(zip(GROUPS, aps, strict=True)), groups=groups[cell[2]]
        )
        for cell, aps in values.items()
    ]
    return build_table(
        records,
        TableSpec("small", ["fcos", "centernet"], ["fl", "afl"], ["shapes"], [0, 1, 2], metrics=["AP"]),
    )


@pytest.fixture
def table(record):
    return table_of(
        record,
        {
            ("fcos", "fl", 0): (0.4, 0.1, 0.2, 0.0), ("centernet", "fl", 0): (0.2, 0.3, 0.2, 0.0),
            ("fcos", "afl", 0): (0.1, 0.2, 0.2, 0.1), ("centernet", "afl", 0): (0.1, 0.3, 0.2, 0.1),
            ("fcos", "fl", 1): (0.4, 0.1, 0.2, 0.0), ("centernet", "fl", 1): (0.4, 0.3, 0.2, None),
            ("fcos", "afl", 1): (0.2, 0.2, 0.3, 0.0), ("centernet", "afl", 1): (0.2, 0.3, 0.2, 0.1),
            ("fcos", "fl", 2): (0.9, 0.9, 0.9, 0.9), ("fcos", "afl", 2): (0.0, 0.0, 0.0, 0.0),  # without CenterNet
        },
    )  # fmt: skip


def test_means_are_over_detectors_and_the_seeds_that_every_loss_and_detector_has(table):
    rows = {row.name: row for row in rows_of(table, ["fl", "afl"], "shapes")}
    assert list(rows) == list(GROUPS) and rows["rov"].group == "f" and rows["cup"].group == "r"
    assert rows["rov"].values["fl"] == pytest.approx({0: 0.3, 1: 0.4})
    assert rows["rov"].values["afl"] == pytest.approx({0: 0.1, 1: 0.2})
    assert rows["rov"].mean("fl").mean == pytest.approx(0.35)
    assert rows["rov"].difference("afl", "fl").mean == pytest.approx(-0.2)
    # No validation object of it with one detector and seed: that seed says nothing of the class.
    assert rows["cup"].values["fl"] == {0: 0.0} and rows["cup"].values["afl"] == pytest.approx(
        {0: 0.1, 1: 0.05}
    )
    with pytest.raises(ValueError, match="no loss ohem; it has fl, afl"):
        rows_of(table, ["fl", "ohem"], "shapes")


def test_the_classes_that_move_farthest_come_first_and_the_others_as_their_mean(table):
    rows = most_moved(rows_of(table, ["fl", "afl"], "shapes"), "fl", shown=2)
    assert [row.name for row in rows] == ["rov", "cup", "mean of the other 2"]
    assert rows[-1].values["fl"] == pytest.approx({0: 0.2, 1: 0.2})
    assert rows[-1].values["afl"] == pytest.approx({0: (0.25 + 0.2) / 2, 1: (0.25 + 0.25) / 2})
    text = to_markdown(rows, "fl")
    assert "| rov | f | 35.0 ± 63.5 | 15.0 ± 63.5 (**-20.0 ± 0.0**) |" in text  # sd 7.07, t 12.706, two seeds
    assert "| cup | r | 0.0 | 7.5 ± 31.8 (+10.0) |" in text
    assert len(most_moved(rows_of(table, ["fl", "afl"], "shapes"), "fl", shown=9)) == 4


def test_a_class_whose_frequency_changes_with_the_data_has_no_group(record):
    runs = {
        (d, loss, seed): (0.1, 0.1, 0.1, 0.1)
        for d in ("fcos", "centernet")
        for loss in ("fl", "afl")
        for seed in (0, 1)
    }
    table = table_of(record, runs, groups=(GROUPS, GROUPS | {"eel": "f"}))
    assert [row.group for row in rows_of(table, ["fl", "afl"], "shapes")] == ["f", "", "c", "r"]


def test_the_mean_over_the_classes_of_a_kept_table_is_its_ap(tmp_path, capsys):
    table = kept_table({"table": "trashcan", "results": ROOT / "results"}).table()
    average = table.values("trashcan", "AP")["average"]
    rows = rows_of(table, ["fl", "afl"], "trashcan")
    for loss in ("fl", "afl"):
        for seed, ap in average[loss].items():
            assert sum(row.values[loss][seed] for row in rows) / len(rows) == pytest.approx(ap, abs=1e-12)
    (tmp_path / "trashcan").mkdir()
    (tmp_path / "trashcan" / "records").symlink_to(ROOT / "results" / "trashcan" / "records")
    main(["classes", "table=trashcan", "shown=1", f"results={tmp_path}"])
    text = (tmp_path / "trashcan" / "classes.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out and len(text.splitlines()) == 4
    with pytest.raises(SystemExit, match="no seed of .* has fl, afl on every detector yet"):
        (tmp_path / "empty" / "trashcan" / "records").mkdir(parents=True)
        one = next((ROOT / "results" / "trashcan" / "records").glob("*-fl-s0.json"))
        (tmp_path / "empty" / "trashcan" / "records" / one.name).symlink_to(one)
        main(["classes", "table=trashcan", "losses=[fl,afl]", f"results={tmp_path / 'empty'}"])
