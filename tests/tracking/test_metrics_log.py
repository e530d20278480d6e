"""Curves of a resumed run equal those of an uninterrupted run; damaged lines are skipped and named."""

from __future__ import annotations

import json

import pytest
import torch

from afl.tracking.metrics_log import MetricsLog, read_metrics


def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path):
    def write(log, steps):
        for step in steps:
            log.log(step, {"loss": 1 / (step + 1), "lr": 0.1})

    with MetricsLog(tmp_path / "whole.jsonl") as log:
        write(log, range(10))
    log = MetricsLog(tmp_path / "cut.jsonl")
    write(log, range(7))
    # killed while writing a line; the last checkpoint was at step 4
    with open(tmp_path / "cut.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    with MetricsLog(tmp_path / "cut.jsonl", resume_step=4) as log:
        write(log, range(5, 10))
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_logged_line_is_written_to_disk_immediately(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.log(1, {"loss": torch.tensor(0.5), "note": "warm-up", "grad": float("inf")})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line.pop("checksum")
    assert line == {"step": 1, "loss": 0.5, "note": "warm-up", "grad": None}
    log.close()


def test_a_new_run_discards_an_older_log(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("rubbish\nmore\n")
    MetricsLog(tmp_path / "metrics.jsonl").close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    assert read_metrics(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize(
    "damage",
    [
        "rubbish",
        "[1]",
        '{"loss": 1}',
        '{"step": true}',
        "\xff\x00",
        "{}" * 50,
        "[" * 100_000,
        '{"step": 2e0}',
        "",
    ],
)
def test_a_damaged_line_in_the_middle_is_skipped_and_named(tmp_path, damage, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage.encode("latin-1") + b'\n{"step": 3}\n')
    assert read_metrics(path) == [{"step": 1}, {"step": 3}]
    assert caplog.messages == [f"{path}: line 2 is damaged and left out"]
    with MetricsLog(path, resume_step=2) as log:
        log.log(3, {"loss": 0.5})
    caplog.clear()
    assert read_metrics(path) == [{"step": 1}, {"step": 3, "loss": 0.5}] and not caplog.messages


def test_no_changed_byte_of_a_line_is_read_as_another_value(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.log(1, {"val/AP": 0.25, "loss": 1.5e-3})
        log.log(2, {"val/AP": 0.5})
    whole, first = path.read_bytes(), {"step": 1, "val/AP": 0.25, "loss": 1.5e-3}
    for i in range(whole.index(b"\n")):
        for bit in (1, 2, 4, 16):
            data = bytearray(whole)
            data[i] ^= bit
            path.write_bytes(data)
            found = read_metrics(path)
            # If the name of the checksum changes, it appears as a figure of that name; the figures are right.
            assert found[-1] == {"step": 2, "val/AP": 0.5}
            assert len(found) == 1 or {name: found[0].get(name) for name in first} == first, data


def test_a_repeated_last_evaluation_has_one_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.log(5, {"val/AP": 0.1})
        log.log(10, {"loss": 0.5})
        log.log(10, {"val/AP": 0.2})  # killed before the record
    for _ in range(2):
        with MetricsLog(path, resume_step=10, last_step=10) as log:
            log.log(10, {"val/AP": 0.2})
    lines = [{"step": 5, "val/AP": 0.1}, {"step": 10, "loss": 0.5}, {"step": 10, "val/AP": 0.2}]
    assert read_metrics(path) == lines
    # An evaluation during training precedes the checkpoint of its step and is not repeated.
    MetricsLog(path, resume_step=5, last_step=10).close()
    assert read_metrics(path) == lines[:1]
