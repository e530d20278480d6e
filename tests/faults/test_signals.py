"""Signals save a checkpoint, requeue the job and end with code 75; the continued run ends like an uninterrupted one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from afl.tracking import read_record
from afl.training.interruption import INTERRUPTED
from tests.faults.short_run import (
    TORCHRUN,
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
LONG = (
    "detector=centernet",
    "loss=afl",
    "trainer.max_duration=80steps",
    "trainer.checkpoint_every=1000steps",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache) -> dict:
    """The checkpoint of an uninterrupted run."""
    output = tmp_path_factory.mktemp("whole")
    finished(command(output, cache, *LONG))
    return last_checkpoint(output)


def interrupted(output: Path, cache: Path, number: int, *, start=(), **variables: str) -> tuple[int, str]:
    """Send the signal after eight steps; returns the exit code and the output."""
    process = started(command(output, cache, *LONG, start=start), **variables)
    assert wait_for(lambda: steps_done(output) >= 8, process)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=120)
    return process.returncode, printed


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_saves_the_step_and_sets_the_exit_code(name, tmp_path, cache, whole, count):
    code, printed = interrupted(tmp_path, cache, getattr(signal, name))
    saved = last_checkpoint(tmp_path)
    assert code == INTERRUPTED == 75 and f"{name}: saved at step {saved['step']} of 80" in printed
    assert 8 <= saved["step"] < 80 and not (run_folder(tmp_path) / "record.json").exists()
    assert f"continues from step {saved['step']}" in finished(command(tmp_path, cache, *LONG))
    assert_same(last_checkpoint(tmp_path), whole)
    count("signals obeyed, resumed exactly")


@pytest.mark.parametrize(("name", "expected"), [("SIGTERM", INTERRUPTED), ("SIGINT", 130)])
def test_a_signal_to_all_processes_of_a_job_does_not_end_the_loaders(
    name, expected, tmp_path, cache, whole, count
):
    """Slurm ends a job this way, and a terminal forwards Ctrl-C this way."""
    process = started(command(tmp_path, cache, *LONG, "trainer.num_workers=2"), own_session=True)
    assert wait_for(lambda: steps_done(tmp_path) >= 8, process)
    os.killpg(process.pid, getattr(signal, name))
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == expected and "Traceback" not in printed, printed
    saved = last_checkpoint(tmp_path)
    assert f"{name}: saved at step {saved['step']} of 80" in printed and 8 <= saved["step"] < 80
    finished(command(tmp_path, cache, *LONG))
    assert_same(last_checkpoint(tmp_path), whole)
    count("signals obeyed, resumed exactly")


@pytest.mark.parametrize("works", [True, False])
def test_sigusr1_requeues_a_slurm_job(works, tmp_path, cache, count):
    tools = tmp_path / "bin"
    tools.mkdir()
    said = tmp_path / "said"
    ends = "" if works else 'echo "Invalid job id specified" >&2; exit 1'
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {said}\n{ends}\n')
    (tools / "scontrol").chmod(0o755)
    code, printed = interrupted(
        tmp_path / "output", cache, signal.SIGUSR1, SLURM_JOB_ID="4711", PATH=f"{tools}:/usr/bin:/bin"
    )
    assert code == INTERRUPTED and said.read_text() == "requeue 4711\n"
    assert ("4711 is back in the queue" if works else "Invalid job id specified") in printed
    count("signals obeyed, resumed exactly")


def test_all_processes_of_torchrun_save_at_the_same_step(tmp_path, cache, count):
    _, printed = interrupted(tmp_path, cache, signal.SIGTERM, start=TORCHRUN)
    saved = last_checkpoint(tmp_path)
    assert printed.count(f"saved at step {saved['step']} of 80") == 2
    assert "continues from step" in finished(command(tmp_path, cache, *LONG, start=TORCHRUN))
    assert read_record(run_folder(tmp_path) / "record.json").status == "finished"
    count("signals obeyed, resumed exactly")
