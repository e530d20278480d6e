"""The evaluate command on a short run: overrides compared with a training with the same overrides; class names are unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import scripts.evaluate as command
from afl.config import ConfigError
from afl.training import run_cell
from afl.training.data import read_data
from afl.training.evaluation import evaluate_with_both
from afl.training.load import load_run


def test_overrides_also_change_dependent_settings_and_figures_are_saved_before_printing(
    small_cell, monkeypatch, capsys
):
    config = small_cell("fcos", "fl", "trainer.max_duration=1steps")
    folder = Path(config.paths.output) / run_cell(config).key
    run = load_run(folder, ["dataset.max_detections=7", "dataset.seed=5"])
    config.dataset.max_detections, config.dataset.seed = 7, 5
    assert run.detector.max_detections == 7
    assert run.data.fingerprint == read_data(config).fingerprint != load_run(folder).data.fingerprint

    def broken(*arguments):
        raise RuntimeError("the terminal is gone")

    with monkeypatch.context() as patch:
        patch.setattr(command, "show", broken)
        with pytest.raises(RuntimeError, match="the terminal is gone"):
            command.main([f"run={folder}", "dataset.max_detections=7"])
    written = json.loads((folder / "evaluation.json").read_text())
    assert written["overrides"] == ["dataset.max_detections=7"] and len(written["per_class"]) == 30
    command.main([f"run={folder}"])
    assert json.loads((folder / "evaluation.json").read_text())["overrides"] == []
    # Weights of other classes are rejected, even if the number of classes is the same.
    renamed = run.data.val.category_names
    monkeypatch.setattr(
        "afl.training.load.evaluated_weights",
        lambda state: pytest.fail("read before the classes were compared"),
    )
    monkeypatch.setattr(
        "afl.training.load.load_checkpoint", lambda path: {"about": {"names": [*renamed[1:], "other"]}}
    )
    with pytest.raises(ConfigError, match="it lacks other; only it has"):
        load_run(folder)


def test_class_names_are_not_parsed_as_markup(capsys):
    names = ["bolt [m6]", "[/old] nut", "\x1b[31mred", "猫"]
    command.show(
        {"AP": 0.5, "per_class": dict.fromkeys(names, 0.5)}, dict.fromkeys(names, "r"), "weights [a].pt"
    )
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("bolt [m6]", "[/old] nut", "\\x1b[31mred", "猫", "[a].pt"))


def test_a_long_path_is_printed_in_one_line(capsys):
    path = "outputs/" + "long_name-" * 20 + "/checkpoints/last.pt"
    command.show({"AP": 0.5, "per_class": {"cat": 0.5}}, {"cat": "r"}, path)
    figures = {"AP": 0.5, "per_class": {"cat": 0.5}}
    command.show_both({"fast": figures, "official": figures}, Path(path))
    assert capsys.readouterr().out.splitlines().count(path) == 2


@pytest.mark.parametrize(
    "name, metric", [("shapes_coco", "coco"), ("shapes_lvis", "lvis"), ("shapes_voc", "voc")]
)
def test_both_evaluators_are_compared_on_the_detections_of_the_run(small_cell, capsys, name, metric):
    config = small_cell("fcos", "fl", "trainer.max_duration=3steps", f"dataset={name}")
    record = run_cell(config)
    folder = Path(config.paths.output) / record.key
    figures = evaluate_with_both(folder)
    assert set(figures) == {"official", "fast"}
    for own in figures.values():
        per_class = own.pop("per_class")
        assert per_class == pytest.approx(record.per_class, abs=1e-9, nan_ok=True)
        assert own == pytest.approx(record.metrics, abs=1e-9)
    before = sorted(path.name for path in folder.iterdir())
    command.main([f"run={folder}", "both=true"])
    for change in (
        "+trainer.fixed_detections=1000",
        "dataset.image_size=32",
        "dataset.max_detections=300",
        "dataset.val.split=train",
    ):
        with pytest.raises(ValueError, match="both=true compares the evaluators on the run's detections"):
            command.main([f"run={folder}", "both=true", change])
    assert "official" in capsys.readouterr().out and sorted(path.name for path in folder.iterdir()) == before
    for unused in ("checkpoint=other.pt", "detector.score_threshold=0.9", "+trainer.test_time.flip=true"):
        with pytest.raises(ValueError, match="both=true compares the evaluators on the run's detections"):
            command.main([f"run={folder}", "both=true", unused])
    # The detections of another run belong to other images.
    kept = json.loads((folder / "detections.json").read_text()) or [
        {"bbox": [0, 0, 1, 1], "score": 0.5, "category_id": 1}
    ]
    (folder / "detections.json").write_text(json.dumps([kept[0] | {"image_id": 10**9}]))
    with pytest.raises(ValueError, match="image_id = 1000000000"):
        evaluate_with_both(folder)
