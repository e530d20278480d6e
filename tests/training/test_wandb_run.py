"""The file that W&B writes for an offline run, read record by record, compared with the run's files and its config."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from omegaconf import DictConfig

from afl.evaluation.confusion import MIN_SCORE
from afl.tracking import RECORD, read_metrics, record_of_summary
from afl.training import run_cell
from afl.training.compose import compose_cell
from afl.training.diagnostics import GROUP_NAMES, diagnostic_charts

pytest.importorskip("wandb")
from tests.tracking import wandb_file  # noqa: E402


def small(folder: Path) -> DictConfig:
    """A run of a few steps with W&B."""
    return compose_cell(
        detector="retinanet",
        loss="afl",
        overrides=[
            "dataset=shapes_lvis", "dataset.folder.num_train=60", "dataset.folder.num_val=10", "initial_weights=null",
            "trainer.progress=none", "trainer.batch_size=4", "trainer.max_duration=6steps", "trainer.log_every=2steps",
            "trainer.evaluate_every=3steps", "trainer.pictures=2", "trainer.device=cpu", "detector.score_threshold=0.001",
            f"paths.output={folder}/outputs", f"paths.cache={folder}/cache",
        ],
    )  # fmt: skip


def written(folder: Path) -> Path:
    """The file of the only W&B run, which W&B's process may still be writing after the run has ended."""
    (file,) = folder.glob("outputs/*/wandb/offline-run-*/run-*.wandb")
    return complete(file)


def complete(file: Path) -> Path:
    """The file after its last record is written."""
    deadline = time.monotonic() + 30
    while not any(item.HasField("exit") for item in wandb_file.records(file)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Record, run directory, and the file of W&B."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        record = run_cell(small(folder))
    file = written(folder)
    return record, folder / "outputs" / record.key, file


def test_a_run_has_a_name_a_group_and_tags(run):
    record, _, file = run
    (start,) = [item.run for item in wandb_file.records(file) if item.HasField("run")]
    assert start.display_name == record.key.rpartition("-")[0]
    assert (start.project, start.run_group, start.job_type) == ("afl", "shapes_lvis-retinanet-afl", "train")
    assert list(start.tags) == ["shapes_lvis", "retinanet", "afl", "seed0", "reconstruction"]


def test_the_curves_equal_those_of_the_run_directory(run):
    _, folder, file = run
    logged: dict[int, dict] = {}
    for line in wandb_file.history(file):
        logged.setdefault(line["_step"], {}).update(line)
    for line in read_metrics(folder / "metrics.jsonl"):
        for name, value in line.items():
            if name != "step" and value is not None:
                assert logged[line["step"]][name] == pytest.approx(value), name
    assert any(name.startswith("gradient/") and name.endswith("/sum") for name in logged[6])


def test_summaries_have_last_and_best_values(run):
    record, _, file = run
    defined = {item.metric.name: item.metric for item in wandb_file.records(file) if item.HasField("metric")}
    assert not any(metric.step_metric for metric in defined.values())  # W&B's own step is the optimiser step
    assert defined["val/AP"].summary.max and defined["val/AP"].summary.last
    found = wandb_file.summary(file)
    assert found["val/AP"]["last"] == pytest.approx(record.metrics["AP"])
    assert found["val/AP"]["max"] >= found["val/AP"]["last"]
    assert found["AP"] == pytest.approx(record.metrics["AP"])


def test_the_record_is_restored_from_summary_and_config(run):
    record, _, file = run
    config = {name: value for name, value in wandb_file.config(file).items() if not name.startswith("_")}
    back = record_of_summary(wandb_file.summary(file)[RECORD], config, "here")
    assert back.config == record.config
    for name in ("key", "status", "metrics", "protocol", "environment", "git", "data_hash", "seed", "steps"):
        assert getattr(back, name) == getattr(record, name), name


def test_the_first_curves_are_those_of_the_overview(run):
    """Rare and frequent AP, kappa, and the ratio of gradients, computed here from the curves in the run directory."""
    _, folder, file = run
    logged: dict[int, dict] = {}
    for line in wandb_file.history(file):
        logged.setdefault(line["_step"], {}).update(line)
    names = sorted({name for line in logged.values() for name in line if not name.startswith("_")})
    # The small data set has no frequent class.
    assert names[:4] == [f"0_overview/{name}" for name in ("AP", "AP_r", "kappa", "push_r")]
    last = {
        name: value
        for line in read_metrics(folder / "metrics.jsonl")
        if line["step"] == 6
        for name, value in line.items()
    }
    assert logged[6]["0_overview/AP_r"] == pytest.approx(last["val/AP_r"])
    assert logged[6]["0_overview/kappa"] == pytest.approx(
        last["gradient/classification/adaptive_gradient/kappa"]
    )
    ratio = last["gradient/classification/positive/r/sum"] / last["gradient/classification/negative/r/sum"]
    assert logged[6]["0_overview/push_r"] == pytest.approx(ratio)


def test_the_offline_attempts_of_an_interrupted_run_are_parts_of_one_run(tmp_path):
    """Their files have one id, the mark of a resumed run, and consecutive steps, so that `wandb sync` joins them."""
    from afl.tracking import WandbTracker

    for steps in ((10, 20), (30, 40)):
        tracker = WandbTracker(
            project="p", directory=tmp_path, name="n", run_id="0a1b2c3d", mode="offline", group="cell"
        )
        for step in steps:
            tracker.log(step, {"loss": 1.0 / step})
        tracker.finish()
    files = sorted(
        tmp_path.glob("wandb/offline-run-*/run-0a1b2c3d.wandb"), key=lambda path: path.stat().st_mtime_ns
    )
    assert len(files) == 2
    for file, steps in zip(map(complete, files), ((10, 20), (30, 40)), strict=True):
        (start,) = [item.run for item in wandb_file.records(file) if item.HasField("run")]
        assert (start.run_id, start.resume, start.run_group) == ("0a1b2c3d", True, "cell")
        assert [line["_step"] for line in wandb_file.history(file)] == list(steps)


def test_pictures_have_boxes_of_truth_and_predictions_with_class_names(run):
    record, _, file = run
    media = file.parent / "files"
    pictures = [
        value
        for line in wandb_file.history(file)
        for name, value in line.items()
        if name.startswith("images/")
    ]
    assert len(pictures) == 2
    for picture in pictures:
        assert (media / picture["path"]).stat().st_size > 0
        for kind in ("ground_truth", "predictions"):
            boxes = json.loads((media / picture["boxes"][kind]["path"]).read_text())["box_data"]
            assert boxes and all(box["domain"] == "pixel" for box in boxes)
            assert ("scores" in boxes[0]) == (kind == "predictions")
    # The class filter of W&B's panel reads the names from the config.
    text = json.dumps(wandb_file.config(file)["_wandb"]) + "".join(
        json.dumps(list(map(str, item.config.update)))
        for item in wandb_file.records(file)
        if item.HasField("config")
    )
    assert next(iter(record.per_class)) in text


def test_charts_equal_the_diagnostics(run):
    record, folder, file = run
    content = json.loads((folder / "diagnostics.json").read_text())
    assert len(content["precision"]["all"]) == 101
    assert sum(content["precision"]["all"]) / 101 == pytest.approx(record.metrics["AP50"])
    objects = sum(number for actual, _, number in content["pairs"] if actual is not None)
    assert objects == 10 * 6  # six objects in each of ten images
    detections = json.loads((folder / "detections.json").read_text())
    found = sum(number for _, name, number in content["pairs"] if name is not None)
    assert found <= sum(one["score"] >= MIN_SCORE for one in detections)
    charts = diagnostic_charts(folder / "diagnostics.json")
    assert {row[0] for row in charts["precision_recall"].rows} <= set(GROUP_NAMES.values())
    config = "".join(str(item.config) for item in wandb_file.records(file) if item.HasField("config"))
    for name in charts:
        assert f"val_charts/{name}" in config
    tables = {path.name for path in (file.parent / "files").rglob("*.table.json")}
    assert any("precision_recall" in name for name in tables), tables


def test_system_metrics_are_logged(run):
    _, folder, _ = run
    text = Path(folder / "config.yaml").read_text()
    assert "system_metrics: true" in text


def test_a_failed_run_is_marked_in_its_summary_and_exits_with_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("afl.training.run.train", lambda *_: (_ for _ in ()).throw(OSError("disk is full")))
    with pytest.raises(OSError):
        run_cell(small(tmp_path))
    file = written(tmp_path)
    record = record_of_summary(wandb_file.summary(file)[RECORD], {}, "here")
    assert (record.status, record.error) == ("failed", "OSError: disk is full")
    (end,) = [item.exit for item in wandb_file.records(file) if item.HasField("exit")]
    assert end.exit_code == 1
