"""Runs that are killed with SIGKILL at random moments and restarted end with the checkpoint of an uninterrupted run, bit for bit."""

from __future__ import annotations

import random
import signal
import time

import pytest

from afl.tracking import read_record
from afl.training.checkpoint import load_latest
from tests.faults.short_run import (
    DETECTORS,
    assert_same,
    command,
    finished,
    last_checkpoint,
    run_folder,
    started,
    steps_done,
    wait_for,
)

pytestmark = pytest.mark.faults
KILLS = 5


def kill(process, seconds: float) -> bool:
    """Kill the process after so many seconds; returns whether it was still running."""
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    printed, _ = process.communicate()
    assert process.returncode in (-signal.SIGKILL, 0), printed
    return process.returncode != 0


@pytest.mark.parametrize("detector", DETECTORS)
def test_thirty_killed_runs_resume_exactly(detector, tmp_path, cache, count):
    draw = random.Random(detector)
    loss = (
        f"loss={draw.choice(['afl', 'afl_per_class', 'ghm', 'libra'])}"
        if detector != "cornernet"
        else "loss=afl"
    )
    arguments = [f"detector={detector}", loss, "trainer.max_duration=60steps", "trainer.ema=0.9"]
    begin = time.monotonic()
    finished(command(tmp_path / "whole", cache, *arguments))
    whole = last_checkpoint(tmp_path / "whole")
    seconds, output = whole["seconds"], tmp_path / "killed"
    around = time.monotonic() - begin - seconds
    again = command(output, cache, *arguments)
    kill(started(again), draw.uniform(0, around))
    count("kills -9 at random moments of starting up")
    kills, resumed_from = 0, []
    while kills < KILLS:
        before = steps_done(output)
        process = started(again)
        # Each kill happens within the next eighth of the training, so five kills fit into one training.
        if wait_for(lambda: steps_done(output) != before, process):  # noqa: B023
            time.sleep(draw.uniform(0, seconds / 8))
            process.send_signal(signal.SIGKILL)
        printed, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"it ended before kill {kills + 1}:\n{printed}"
        kills += 1
        state, passed_over = load_latest(run_folder(output) / "checkpoints", whole["run"])
        assert not passed_over
        resumed_from.append(0 if state is None else state["step"])
        assert not (run_folder(output) / "record.json").exists()
    process = started(again)
    # The last checkpoint, detections and record are written in this time; the run may end before the signal.
    wait_for(lambda: steps_done(output) >= 60, process)
    count("kills -9 at random moments of the last writing", kill(process, draw.uniform(0, around / 8)))
    finished(again)
    assert read_record(run_folder(output) / "record.json").status == "finished"
    assert resumed_from == sorted(resumed_from) and resumed_from[-1] > 0
    assert_same(last_checkpoint(output), whole)
    assert not list(run_folder(output).rglob("*.tmp"))
    count("kills -9 at random moments of training", kills)
    count("exact resumes after them: model, optimiser, average and loss state bit for bit", kills)
