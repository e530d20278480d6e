"""Curves cut at a resumed step equal those of a run that never stopped."""

from __future__ import annotations

import json

import pytest
import torch

from afl.tracking.metrics_log import MetricsLog, read_metrics


def test_a_resumed_log_equals_one_that_was_never_cut(tmp_path):
    def write(log, steps):
        for step in steps:
            log.log(step, {"loss": 1 / (step + 1), "lr": 0.1})

    with MetricsLog(tmp_path / "whole.jsonl") as log:
        write(log, range(10))
    log = MetricsLog(tmp_path / "cut.jsonl")
    write(log, range(7))
    # killed in the middle of a line; the last checkpoint was at step 4
    with open(tmp_path / "cut.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    with MetricsLog(tmp_path / "cut.jsonl", resume_step=4) as log:
        write(log, range(5, 10))
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.log(1, {"loss": torch.tensor(0.5), "note": "warm-up", "grad": float("inf")})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 1, "loss": 0.5, "note": "warm-up", "grad": None}
    log.close()


def test_a_fresh_start_forgets_an_older_log(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("rubbish\nmore\n")
    MetricsLog(tmp_path / "metrics.jsonl").close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    assert read_metrics(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("damage", ["rubbish", "[1]", '{"loss": 1}'])
def test_a_damaged_line_in_the_middle_is_named(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + damage + '\n{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
        read_metrics(path)
