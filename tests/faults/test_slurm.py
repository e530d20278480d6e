"""A sweep on a real Slurm with preempted jobs, and one with joblib, give the records and weights of single commands."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from afl.tracking import read_record
from tests.faults.short_run import (
    DETECTORS,
    assert_same,
    finished,
    lines_in,
    overrides,
    read_checkpoint,
    started,
    wait_for,
)

pytestmark = pytest.mark.faults
CELLS = (f"detector={','.join(DETECTORS)}", "loss=fl,afl", "seed=0,1", "trainer.max_duration=120steps")
LONG = ("trainer.checkpoint_every=1000steps", "trainer.log_every=5steps")
# Events of a running job: submitit's signal, preemption, and the signal of plain jobs.
REQUEUE = ("scontrol", "requeue")
WAYS = (("scancel", "--signal=USR2"), REQUEUE, ("scancel", "--signal=USR1"))


def sweep(output: Path, cache: Path, *launcher: str) -> list[str]:
    return [sys.executable, "-m", "scripts.train", "-m", *launcher, *overrides(output, cache), *CELLS, *LONG]


def records(output: Path) -> dict[str, dict]:
    """The parts of records that a table depends on, by run key; times and machines differ."""
    found = {}
    for path in output.glob("shapes*/record.json"):
        record = asdict(read_record(path))
        names = ("status", "metrics", "per_class", "groups", "protocol", "data_hash", "steps", "parameters")
        found[record["key"]] = {name: record[name] for name in names}
    return found


@pytest.fixture(scope="module")
def joblib_sweep(tmp_path_factory, cache) -> Path:
    output = tmp_path_factory.mktemp("joblib")
    finished(sweep(output, cache, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"))
    return output


def test_joblib_gives_the_record_of_a_single_command(joblib_sweep, cache, tmp_path, count):
    arguments = ["detector=fcos", "loss=afl", "seed=1", CELLS[-1], *LONG]
    finished([sys.executable, "-m", "scripts.train", *overrides(tmp_path, cache), *arguments])
    (single,) = records(tmp_path).items()
    assert records(joblib_sweep)[single[0]] == single[1]
    count("records of a joblib sweep", len(records(joblib_sweep)))


def test_a_sweep_on_slurm_with_three_jobs_preempted_loses_nothing(joblib_sweep, cache, tmp_path, count):
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no Slurm answers here")
    sweeping = started(
        sweep(tmp_path, cache, "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=30")
    )
    preempted: dict[str, tuple[str, ...]] = {}

    def preempt(way: tuple[str, ...]) -> bool:
        """Whether a run received the signal and saved. The exit code of the command is not used, because a job may be on its
        way into the queue before the command ends."""
        for folder in sorted(tmp_path.glob("shapes*")):
            if folder.name in preempted or not 3 <= lines_in(folder) < 15:
                continue
            holder, saved = _holder(folder), folder / "checkpoints" / "last.pt"
            if holder is None or saved.exists():
                continue
            process, job = holder
            subprocess.run([*way, job], capture_output=True)
            assert wait_for(saved.exists, sweeping)
            if way == REQUEUE:
                # submitit does not stop at SIGTERM, and Slurm kills the job half a minute later; here it is killed immediately.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            preempted[folder.name] = way
            return True
        return False

    for way in WAYS:
        assert wait_for(lambda way=way: preempt(way), sweeping, seconds=400)
    printed, _ = sweeping.communicate(timeout=900)
    assert sweeping.returncode == 0, printed
    assert records(tmp_path) == records(joblib_sweep) and len(records(tmp_path)) == 24
    logs = "\n".join(path.read_text() for path in tmp_path.glob("sweeps/**/*_log.out"))
    for name in preempted:
        assert f"{name} continues from step" in logs
        paths = [root / name / "checkpoints" / "last.pt" for root in (tmp_path, joblib_sweep)]
        assert_same(*(read_checkpoint(path) for path in paths))
    count("records of a Slurm sweep of 24 cells, equal to those of joblib", len(records(tmp_path)))
    count("Slurm jobs preempted in mid-training that went on from their checkpoint", len(preempted))


def _holder(folder: Path) -> tuple[int, str] | None:
    """The process that holds the run, and the Slurm id of its job."""
    try:
        process = int((folder / ".lock").read_text().split()[1])
        text = Path(f"/proc/{process}/environ").read_text()
    except (OSError, IndexError, ValueError):
        return None
    variables = dict(item.split("=", 1) for item in text.split("\0") if "=" in item)
    if "SLURM_ARRAY_JOB_ID" not in variables:
        return None
    return process, f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}"
