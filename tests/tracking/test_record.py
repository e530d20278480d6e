"""Records are read as they were written; damaged, changed and foreign records are rejected with the name of the file."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict

import numpy as np
import pytest
import torch

from afl.tracking.environment import environment, git_state
from afl.tracking.record import Record, read_record, writable, write_record

RECORD = Record(
    key="shapes-fcos-fl-s0-01234567",
    status="finished",
    dataset="shapes",
    detector="fcos",
    loss="fl",
    seed=0,
    config={"loss": {"name": "fl", "gamma": 2.0}},
    protocol={"backbone": "tiny"},
    metrics={"AP": 0.25, "AP_r": None},
    per_class={"red disc": 0.5, "Größe": None},
    groups={"red disc": "f"},
    gradient_dynamics={"steps": [50], "curves": {"gradient/heat/positive/r/sum": [None]}},
    train_seconds=60.0,
    eval_seconds=3.5,
)


def test_a_record_is_read_as_it_was_written(tmp_path):
    write_record(tmp_path / "record.json", RECORD)
    assert read_record(tmp_path / "record.json") == RECORD
    assert RECORD.seconds == 63.5


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: "[]", "not the record of a run"),
        (lambda text: text.replace('"schema": 1', '"schema": 99'), "schema 99, this code reads 1"),
        (lambda text: text.replace('"seed"', '"sed"'), "unknown field 'sed'"),
        (lambda text: text.replace('"seed": 0', '"seed": "0"'), "field 'seed' is a str"),
        (lambda text: text.replace('"AP": 0.25', '"AP": "0.25"'), "metric 'AP' is '0.25'"),
        (lambda text: text.replace('"AP": 0.25', '"AP": NaN'), "metric 'AP' is nan"),
        (lambda text: text.replace("finished", "done"), "'done'"),
        (lambda text: text.replace('"AP": 0.25, "AP_r": null', ""), "of a finished run and has no metrics"),
        (
            lambda text: text.replace('"fcos"', '"centernet"'),
            "key is shapes-fcos-fl-s0-01234567, its content .* detector centernet",
        ),
        (
            lambda text: text.replace('"seed": 0', '"seed": 1'),
            "key is shapes-fcos-fl-s0-01234567, its content .* seed 1",
        ),
        (lambda text: text.replace('"gradient_dynamics": {', '"gradient_dynamics": 1, "x": {'), "'x'"),
    ],
)
def test_damaged_records_are_rejected_by_name(tmp_path, change, message):
    path = tmp_path / "record.json"
    # Without a checksum, as in older records, the fields are checked.
    path.write_text(change(json.dumps(asdict(RECORD))))
    with pytest.raises(ValueError, match=f"record.json.*{message}"):
        read_record(path)


def test_a_missing_field_is_named(tmp_path):
    data = asdict(RECORD)
    del data["git"]
    (tmp_path / "record.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="lacks 'git'"):
        read_record(tmp_path / "record.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {"AP": float("nan")}}, "metrics.AP is nan, which is not finite"),
        ({"config": {"a": [0, float("inf")]}}, r"config.a\[1\] is inf, which is not finite"),
        (
            {"groups": {"cat\udc80": "r"}},
            r"groups has the name 'cat\\udc80', which cannot be written as UTF-8",
        ),
        ({"error": "no file \udcff"}, r"error is 'no file \\udcff', which cannot be written as UTF-8"),
    ],
)
def test_a_record_without_json_form_is_not_written_and_the_field_is_named(tmp_path, change, message):
    bad = Record(**(asdict(RECORD) | change))
    with pytest.raises(ValueError, match=f"shapes-fcos-fl-s0-01234567 cannot be written: {message}"):
        write_record(tmp_path / "record.json", bad)
    assert not (tmp_path / "record.json").exists()
    write_record(tmp_path / "record.json", Record(**writable(asdict(bad))))
    read_record(tmp_path / "record.json")


def test_no_changed_byte_is_read_as_another_record(tmp_path):
    path = tmp_path / "record.json"
    write_record(path, RECORD)
    whole = path.read_bytes()
    for i in range(len(whole)):
        data = bytearray(whole)
        data[i] ^= 1
        path.write_bytes(data)
        try:
            found = read_record(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert found == RECORD, data


def test_committed_records_without_checksums_are_read(repository):
    paths = sorted((repository / "results").glob("*/records/*.json"))
    assert paths and all(
        read_record(path).status == "finished" for path in paths[:: max(1, len(paths) // 20)]
    )


def test_environment_describes_this_machine():
    values = environment()
    assert values["torch"] == torch.__version__ or values["torch"] == torch.__version__.partition("+")[0]
    assert values["numpy"] == np.__version__
    assert values["python"] == platform.python_version()
    assert values["threads"] == torch.get_num_threads()
    assert values["device"] == values["cpu"]
    json.dumps(values)


def git(folder, *arguments):
    command = ["git", "-C", folder, "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_git_state_follows_commits_edits_and_sources(tmp_path):
    (tmp_path / "detectors").mkdir()
    (tmp_path / "detectors" / "fcos.py").write_text("x = 1\n")
    (tmp_path / "README.md").write_text("one")
    without = git_state(tmp_path)
    assert (without["sha"], without["dirty"]) == (None, None)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = git_state(tmp_path)
    assert clean == {"sha": git(tmp_path, "rev-parse", "HEAD"), "dirty": False, "source": without["source"]}
    (tmp_path / "README.md").write_text("two")
    assert git_state(tmp_path) == clean | {"dirty": True}
    (tmp_path / "detectors" / "fcos.py").write_text("x = 2\n")
    assert git_state(tmp_path)["source"] != clean["source"]


def test_git_state_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    state = git_state(tmp_path)
    assert (state["sha"], state["dirty"]) == (None, None)
