"""CSV files read by pandas, and TensorBoard's event files read by its reader, compared with the logged values."""

from __future__ import annotations

import csv
import logging

import numpy as np
import pandas as pd
import pytest
import torch

from afl.tracking import Chart, CsvTracker, Picture, TensorBoardTracker, overview

TRACKERS = (CsvTracker, TensorBoardTracker)


def picture() -> Picture:
    return Picture(
        name="7",
        pixels=np.full((40, 60, 3), 90, np.uint8),
        boxes=np.array([[2.0, 3, 30, 30]]),
        labels=np.array([1]),
        found_boxes=np.array([[1.0, 3, 31, 30], [0, 0, 5, 5]]),
        found_scores=np.array([0.9, 0.1]),
        found_labels=np.array([1, 0]),
    )


def use(tracker, steps=(10, 20)) -> None:
    for step in steps:
        tracker.log(
            step,
            {
                "loss/total": 1.0 / step,
                "note": "x",
                "nothing": None,
                "gate": torch.rand(5),
                "nan": float("nan"),
            },
        )
    tracker.log_pictures(steps[-1], [picture()])
    tracker.log_table(steps[-1], "val/per_class", ["class", "AP"], [["a, b", 0.5], ['say "c"', None]])
    lines = Chart(
        "lines", "Precision", ("group", "recall", "precision"), [("rare", 0.0, 1.0), ("rare", 1.0, 0.5)]
    )
    counts = Chart("confusion", "Confusion", ("there is", "found as", "number"), [("a", "b", 3)])
    tracker.log_charts(steps[-1], {"precision_recall": lines, "confusion_groups": counts})
    tracker.summary({"AP": 0.5})
    tracker.finish()


def curves(folder) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in pd.read_csv(folder / "curves.csv").itertuples():
        assert row.step not in found.setdefault(row.name, {})
        found[row.name][row.step] = row.value
    return found


def test_the_csv_files_contain_the_numbers_and_the_table(tmp_path):
    use(CsvTracker(directory=tmp_path / "run", name="n"))
    found = curves(tmp_path / "run")
    assert found == {"loss/total": {10: pytest.approx(0.1), 20: pytest.approx(0.05)}}
    with open(tmp_path / "run" / "val-per_class.csv", newline="") as file:
        assert list(csv.reader(file)) == [["class", "AP"], ["a, b", "0.5"], ['say "c"', ""]]


def test_a_continued_run_replaces_the_rows_that_it_repeats(tmp_path):
    first = CsvTracker(directory=tmp_path)
    for step in (10, 20, 30):
        first.log(step, {"loss": float(step), "val/AP": 0.1})
    with open(tmp_path / "curves.csv", "a") as file:
        file.write("40,lo")  # a killed attempt leaves an incomplete row
    second = CsvTracker(directory=tmp_path)
    second.log(20, {"loss": -20.0})
    second.log(30, {"loss": -30.0})
    second.finish()
    assert curves(tmp_path) == {"loss": {10: 10.0, 20: -20.0, 30: -30.0}, "val/AP": {10: 0.1, 20: 0.1}}


def test_tensorboard_reads_curves_pictures_tables_and_histograms(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    use(TensorBoardTracker(directory=tmp_path, class_names=["cat", "dog"], config={"loss": {"gamma": 2.0}}))
    found = reader.EventAccumulator(str(tmp_path / "tensorboard"), {"tensors": 0, "scalars": 0, "images": 0})
    found.Reload()
    tags = found.Tags()
    assert set(tags["scalars"]) == {"loss/total", "val_charts/precision_recall/rare"}
    assert [(one.step, round(one.value, 6)) for one in found.Scalars("loss/total")] == [(10, 0.1), (20, 0.05)]
    assert [(one.step, one.value) for one in found.Scalars("val_charts/precision_recall/rare")] == [
        (0, 1.0),
        (100, 0.5),
    ]
    assert set(tags["images"]) == {"images/7/objects", "images/7/detections"} and tags["histograms"] == [
        "gate"
    ]
    texts = {tag.removesuffix("/text_summary") for tag in tags["tensors"]}
    assert texts == {"config", "val/per_class", "val_charts/confusion_groups"}


def test_tensorboard_hides_the_steps_that_a_continued_run_repeats(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps, value in (((10, 20, 30), 1.0), ((20, 30), -1.0)):
        tracker = TensorBoardTracker(directory=tmp_path)
        for step in steps:
            tracker.log(step, {"loss": value})
        tracker.finish()
    found = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars("loss")] == [(10, 1.0), (20, -1.0), (30, -1.0)]


@pytest.mark.parametrize("kind", TRACKERS)
def test_a_failure_gives_one_line_and_the_run_continues(tmp_path, caplog, kind):
    (tmp_path / "file").write_text("")
    caplog.set_level(logging.WARNING)
    use(kind(directory=tmp_path / "file" / "run"))
    assert len(caplog.records) == 1 and "the run continues without it" in caplog.records[0].getMessage()
    assert "\n" not in caplog.records[0].getMessage()


def test_a_missing_tensorboard_gives_one_line(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    use(TensorBoardTracker(directory=tmp_path))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_overview_only_contains_existing_figures():
    assert overview({"loss/total": 1.0}) == {}
    figures = {
        "gradient/a/positive/r/sum": 1.0, "gradient/b/positive/r/sum": 2.0, "gradient/a/negative/r/sum": 4.0,
        "gradient/b/negative/r/sum": 8.0, "gradient/a/positive/f/sum": 1.0, "gradient/a/negative/f/sum": 0.0,
        "gradient/a/gate/kappa": 0.5, "gradient/b/gate/kappa": 1.0, "gradient/objectness/gate/kappa": 0.0, "val/AP_r": 0.25, "val/AP_f": None,
    }  # fmt: skip
    assert overview(figures) == {"0_overview/AP_r": 0.25, "0_overview/kappa": 0.75, "0_overview/push_r": 0.25}
