"""The life cycle of a run and its folder: checks before the first step, reasons of failures, records and code that differ."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from afl.config import ConfigError
from afl.tracking import read_metrics, read_record, write_record
from afl.training import run, run_cell
from afl.training.checkpoint import CheckpointError
from afl.training.data import read_data
from afl.training.lock import run_lock
from afl.training.preparation import kept_random_state
from datasets import DataError


def folders(config) -> list[Path]:
    output = Path(config.paths.output)
    return sorted(output.iterdir()) if output.exists() else []


def folder_of(config) -> Path:
    (folder,) = folders(config)
    return folder


@pytest.fixture
def no_training(monkeypatch):
    """Fail the test if training starts."""
    monkeypatch.setattr(run, "train", lambda _: pytest.fail("trained"))


# ---- before the first step -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.factory.final=inf"], "schedule.factory.final is inf"),
        (["trainer.test_time.scales=[0]"], "trainer.test_time.scales"),
        (["dataset.max_detections=0"], "max_detections"),
        (["dataset.metric=map"], "dataset.metric is 'map'"),
        (["trainer.accumulate=3"], "cannot be divided evenly"),
    ],
)
def test_invalid_settings_fail_before_training_and_leave_no_folder(
    overrides, message, small_cell, no_training
):
    config = small_cell("retinanet", "fl", *overrides)
    with pytest.raises((ConfigError, ValueError), match=message):
        run_cell(config)
    assert folders(config) == []


def test_a_class_name_that_cannot_be_written_gives_an_error_with_its_file(
    small_cell, no_training, monkeypatch, tmp_path
):
    config = small_cell("retinanet", "fl")
    data = read_data(config)
    names = ["cat\udc80", *data.train.category_names[1:]]
    broken = replace(
        data,
        train=replace(data.train, category_names=names),
        val=replace(data.val, category_names=names),
        statistics=replace(data.statistics, names=names),
    )
    monkeypatch.setattr(run, "read_data", lambda config: broken)
    with pytest.raises(
        DataError, match=r"the name of category \d+ .*cannot be written as UTF-8; rename"
    ) as refused:
        run_cell(config)
    assert data.train.sources[0] in str(refused.value) and folders(config) == []


def test_a_damaged_first_validation_image_is_found_before_training(small_cell, no_training):
    config = small_cell("retinanet", "fl")
    data = read_data(config)
    path = data.val.image_path(0)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="damaged"):
        run_cell(config)
    assert folders(config) == []


def test_a_folder_with_files_is_kept_if_a_run_cannot_start(tmp_path):
    with run_lock(tmp_path / "empty", wait=False):
        pass
    assert not (tmp_path / "empty").exists()
    with run_lock(tmp_path / "full", wait=False):
        (tmp_path / "full" / "notes.txt").write_text("mine")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


# ---- failures --------------------------------------------------------------------------------


class Broken(Exception):
    """An error that the code does not expect."""


def fail(*_):
    raise Broken("first reason, with a name\nthat cannot be written: \udcff")


@pytest.mark.parametrize("second", [None, ValueError("second"), OSError("second"), MemoryError("second")])
def test_a_failed_run_records_its_first_error_despite_later_ones(second, small_cell, monkeypatch):
    finished = []

    class Tracker(run.NullTracker):
        def summary(self, values):
            if second is not None:
                raise second

        def finish(self, failed=False):
            finished.append(failed)
            if second is not None:
                raise second

    monkeypatch.setattr(run, "train", fail)
    monkeypatch.setattr(run, "_tracker", lambda _: Tracker())
    config = small_cell()
    with pytest.raises(Broken, match="first reason"):
        run_cell(config)
    record = read_record(folder_of(config) / "record.json")
    assert record.status == "failed" and finished == [True]
    assert record.error == r"Broken: first reason, with a name that cannot be written: \udcff"


def test_a_record_that_cannot_be_written_does_not_hide_the_error(small_cell, monkeypatch, caplog):
    monkeypatch.setattr(run, "train", fail)
    monkeypatch.setattr(run, "write_record", lambda *_: (_ for _ in ()).throw(RuntimeError("no room")))
    with pytest.raises(Broken, match="first reason"):
        run_cell(small_cell())
    assert "no room" in caplog.messages


def test_a_figure_that_cannot_be_recorded_ends_the_tracker_and_writes_a_record(small_cell, monkeypatch):
    finished = []

    class Tracker(run.NullTracker):
        def finish(self, failed=False):
            finished.append(failed)

    monkeypatch.setattr(run, "_tracker", lambda _: Tracker())
    monkeypatch.setattr(run, "summarize", lambda _: {"gate": float("nan")})
    config = small_cell()
    with pytest.raises(ValueError, match="gradient_dynamics.gate is nan, which is not finite"):
        run_cell(config)
    assert finished == [True]
    assert "gradient_dynamics.gate is nan" in read_record(folder_of(config) / "record.json").error
    monkeypatch.undo()
    assert run_cell(config).status == "finished"
    (steps,) = [
        [line["step"] for line in read_metrics(folder_of(config) / "metrics.jsonl") if "val/AP" in line]
    ]
    assert steps == [9], "the evaluation at the end is logged once, however often it was made"


# ---- records and code that differ ------------------------------------------------------------


def test_the_record_of_another_seed_is_not_used(small_cell, caplog):
    config = small_cell()
    record = run_cell(config)
    path = folder_of(config) / "record.json"
    other, damaged = "is not the record of this run", "its key is"
    for change, problem, kept in (
        ({"seed": 1, "key": record.key.replace("-s0-", "-s1-")}, other, "record.other.json"),
        ({"seed": 1}, damaged, "record.damaged.json"),
        ({"data_hash": "x"}, other, "record.other.json"),
    ):
        write_record(path, replace(record, metrics={"AP": 0.99}, **change))
        caplog.clear()
        again = run_cell(config)
        assert again.metrics == record.metrics and again.seed == 0
        assert any(problem in message for message in caplog.messages)
        assert json.loads(path.with_name(kept).read_text())["metrics"] == {"AP": 0.99}


def test_a_record_with_another_config_is_not_used_and_the_setting_is_named(small_cell, caplog):
    config = small_cell()
    record = run_cell(config)
    other = json.loads(json.dumps(asdict(record)))
    other["config"]["loss"]["gamma"] = 1.5
    other["config"]["trainer"]["num_workers"] = 7  # does not change the result
    write_record(folder_of(config) / "record.json", type(record)(**other))
    assert run_cell(config).metrics == record.metrics
    (message,) = [message for message in caplog.messages if "is not the record" in message]
    assert "its config differs in loss.gamma;" in message


@pytest.fixture
def other_code(monkeypatch):
    """``other_code()`` changes the digest of the source code."""

    def change() -> None:
        from afl.training import run_identity

        real = run_identity.git_state
        monkeypatch.setattr(run_identity, "git_state", lambda: real() | {"source": "0123456789ab"})

    return change


def test_a_run_with_changed_source_gives_a_warning_or_an_error_with_strict_code(
    small_cell, monkeypatch, other_code, caplog
):
    config = small_cell("centernet", "fl", "trainer.checkpoint_every=3steps")
    with monkeypatch.context() as broken:
        broken.setattr(run, "contact_sheet", fail)
        with pytest.raises(Broken):
            run_cell(config)
    other_code()
    strict = small_cell("centernet", "fl", "trainer.checkpoint_every=3steps", "strict_code=true")
    with pytest.raises(
        ConfigError, match="was trained to step 9 by another state of the code.*strict_code=true"
    ):
        run_cell(strict)
    assert run_cell(config).status == "finished"
    assert any("was trained to step 9 by another state of the code" in message for message in caplog.messages)


def test_a_finished_run_of_other_source_is_only_rejected_by_strict_code(small_cell, other_code, caplog):
    config = small_cell()
    record = run_cell(config)
    other_code()
    assert run_cell(config) == record
    assert any("was finished by another state of the code" in message for message in caplog.messages)
    with pytest.raises(
        ConfigError, match="was finished by another state of the code.*strict_code=true does not allow"
    ):
        run_cell(small_cell("centernet", "fl", "strict_code=true"))


def test_a_checkpoint_that_does_not_fit_the_code_gives_one_line(small_cell, monkeypatch):
    config = small_cell()
    with monkeypatch.context() as broken:
        broken.setattr(run, "contact_sheet", fail)
        with pytest.raises(Broken):
            run_cell(config)
    path = folder_of(config) / "checkpoints" / "last.pt"
    saved = torch.load(path, weights_only=True)
    saved["model"].popitem()
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match="does not fit the detector that this code builds") as refused:
        run_cell(config)
    assert "\n" not in str(refused.value)


# ---- features and the end --------------------------------------------------------------------


def test_the_random_state_does_not_depend_on_the_training_of_features():
    def draw() -> tuple:
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    for seeded in (torch.manual_seed, np.random.seed, random.seed):
        seeded(3)
    expected = draw()
    for seeded in (torch.manual_seed, np.random.seed, random.seed):
        seeded(3)
    with kept_random_state():
        draw()
        torch.manual_seed(0)
    assert draw() == expected


def test_features_are_announced_once_and_the_run_that_trains_them_does_not_matter(
    small_cell, monkeypatch, caplog, tmp_path
):
    from afl.training import initial_weights

    monkeypatch.setattr("afl.training.features.FEATURES", tmp_path / "none")
    monkeypatch.setattr(
        initial_weights,
        "pretraining_config",
        lambda _: small_cell("centernet", "fl", "trainer.max_duration=2steps"),
    )
    caplog.set_level("INFO")
    states = []
    for name in ("makes", "finds"):
        config = small_cell("centernet", "afl", "initial_weights=shapes")
        config.paths.output = f"{config.paths.output}/{name}"
        caplog.clear()
        record = run_cell(config)
        assert ("happens once" in caplog.text) == (name == "makes"), caplog.text
        assert "feature pre-training for centernet" in caplog.text
        path = Path(config.paths.output) / record.key / "checkpoints" / "last.pt"
        states.append(torch.load(path, weights_only=True))
    assert torch.equal(states[0]["torch_rng"], states[1]["torch_rng"])
    for name, value in states[0]["model"].items():
        assert torch.equal(value, states[1]["model"][name]), name


def test_a_run_prints_its_figures_its_folder_and_two_commands_at_the_end(small_cell, caplog):
    caplog.set_level("INFO")
    config = small_cell()
    record = run_cell(config)
    figures, folder, *commands = caplog.messages[-1].splitlines()
    for name in ("AP", "AP_r", "AP_c", "AP_f"):
        value = record.metrics[name]
        assert value is None or f"  {name} {100 * value:.1f}" in figures
    assert folder.strip() == f"folder: {folder_of(config)}"
    assert [line.split("python -m ")[1].split()[:2] for line in commands] == [
        ["scripts.evaluate", f"run={folder_of(config)}"],
        ["scripts.predict", f"run={folder_of(config)}"],
    ]
