"""The comparison of two runs compared with manually computed differences; and the command on run directories."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from afl.reporting.compare import comparison, flat
from afl.tracking import write_record
from scripts.report import main
from scripts.reports.compare import show


@pytest.fixture
def pair(record):
    """FL and AFL with the same detector and seed: four classes, one of them undefined in the second run."""
    first = record(
        "fcos", "fl", metrics={"AP": 0.3, "AP_r": 0.1, "AP_m": None},
        per_class={"a": 0.5, "b": 0.2, "c": 0.3, "d": 0.4}, groups={"a": "f", "b": "r", "c": "c", "d": "c"},
        config={"loss": {"gamma": 2.0, "chain": {}}, "seed": 0, "paths": {"output": "x"}}, data_hash="1",
    )  # fmt: skip
    second = record(
        "fcos", "afl", metrics={"AP": 0.35, "AP_r": 0.2, "AP_m": 0.1},
        per_class={"a": 0.45, "b": 0.4, "c": 0.3, "d": None}, groups={"a": "f", "b": "r", "c": "c", "d": "c"},
        config={"loss": {"gamma": 2.0, "chain": {"gate": {"kappa": 1.0}}}, "seed": 0, "paths": {"output": "y"}},
        data_hash="1",
    )  # fmt: skip
    return first, second


def test_changed_settings_and_changes_of_ap_are_reported(pair):
    found = comparison(*pair)
    assert found.changed == [("loss.chain.gate.kappa", None, 1.0)]
    assert found.metrics == [("AP", 0.3, 0.35), ("AP_r", 0.1, 0.2)]
    assert [row[0] for row in found.classes] == ["a", "c", "b"]
    assert found.most_moved() == [("a", "f", 0.5, 0.45), ("b", "r", 0.2, 0.4)]
    assert found.warnings == []


def test_the_classes_that_moved_farthest_are_shown(record):
    moves = {"a": -0.1, "b": 0.2, "c": 0.3, "d": -0.3, "e": 0.0, "f": 0.1, "g": -0.2}
    first, second = (
        record("fcos", loss, per_class={name: 0.5 + share * move for name, move in moves.items()})
        for loss, share in (("fl", 0), ("afl", 1))
    )
    shown = [[row[0] for row in comparison(first, second).most_moved(count)] for count in (1, 2, 9)]
    assert shown == [["d", "c"], ["d", "g", "b", "c"], ["d", "g", "a", "f", "b", "c"]]


def test_settings_that_do_not_affect_a_result_are_left_out(pair):
    first, second = (replace(one, config=dict(one.config)) for one in pair)
    first.config["dataset"] = {
        "remedy": "set dataset.root",
        "seed": 0,
        "folder": {"num_train": 560, "root": "a"},
    }
    second.config["dataset"] = {"remedy": None, "seed": 100, "folder": {"num_train": 100, "root": "b"}}
    second.config["per_detector"] = {"fcos": {"score_threshold": 0.1}}
    second.config["trainer"] = {"num_workers": 2}
    assert {row[0] for row in comparison(first, second).changed} == {
        "loss.chain.gate.kappa", "dataset.seed", "dataset.folder.num_train",
    }  # fmt: skip


def test_names_of_settings_are_complete_on_eighty_columns(pair):
    name = "train_transform.heatmap.color.brightness"
    first = replace(pair[0], config={"dataset": {name: "a value that is long enough for two lines"}})
    second = replace(pair[1], config={"dataset": {name: None}})
    text = io.StringIO()
    show(comparison(first, second), Console(file=text, width=80))
    assert f"dataset.{name}" in text.getvalue() and max(map(len, text.getvalue().splitlines())) <= 80


def test_other_data_and_other_code_are_reported(pair, record):
    other = record("fcos", "afl", source="bbbbbb", data_hash="2")
    assert len(comparison(pair[0], other).warnings) == 2


def test_nested_dictionaries_are_flattened():
    assert flat({"a": {"b": {"c": [1, {"d": 2}]}, "e": {}}, "f": None}) == {"a.b.c": [1, {"d": 2}], "f": None}


def test_the_command_prints_a_table_and_draws_a_picture(pair, tmp_path, capsys):
    for name, run in zip(("one", "two"), pair, strict=True):
        write_record(tmp_path / name / "record.json", run)
    main(["compare", f"{tmp_path}/one", f"{tmp_path}/two", f"output={tmp_path}/out"])
    said = capsys.readouterr().out
    assert "+10.0" in said and "loss.chain.gate.kappa" in said and "+20.0" in said
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".pdf", ".png"]


def test_wrong_runs_give_one_line(pair, record, tmp_path):
    write_record(tmp_path / "one" / "record.json", pair[0])
    write_record(tmp_path / "bad" / "record.json", record(status="failed", error="nan"))
    with pytest.raises(ValueError, match="which two runs"):
        main(["compare", f"{tmp_path}/one"])
    (tmp_path / "one" / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(ValueError, match=f"^{tmp_path}/on does not exist. Did you mean {tmp_path}/one?"):
        main(["compare", f"{tmp_path}/on", f"{tmp_path}/bad"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="not a run directory"):
        main(["compare", f"{tmp_path}/one", f"{tmp_path}/empty"])
    with pytest.raises(ValueError, match="the run failed"):
        main(["compare", f"{tmp_path}/one", f"{tmp_path}/bad"])


def test_names_that_look_like_markup_are_printed_unchanged(pair, tmp_path, capsys):
    for name, run in zip(("one", "two"), pair, strict=True):
        odd = {"[red]": 0.1 if name == "one" else 0.3, "[/bold]": 0.2}
        write_record(
            tmp_path / name / "record.json",
            replace(run, per_class=odd, groups=dict.fromkeys(odd, "r"), config={"names": f"[/x] {name}"}),
        )
    main(["compare", f"{tmp_path}/one", f"{tmp_path}/two", f"output={tmp_path}/out"])
    said = capsys.readouterr().out
    assert "[red]" in said and "[/x] one" in said
