"""A disk that fills up during training gives one line and keeps the last good checkpoint, and the run can be completed later."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from afl.tracking import read_record
from afl.training.checkpoint import load_checkpoint
from tests.faults.short_run import (
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
CELL = ("detector=centernet", "loss=afl", "trainer.max_duration=60steps")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A separate small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no small file system can be mounted without being root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that fills ``disk`` except for ``leave`` bytes."""
    path = disk / "filler"
    free = os.statvfs(disk)
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        file.write(bytes(max(0, free.f_bavail * free.f_frsize - leave)))
    return path


@pytest.mark.parametrize("room", [0, 8_000, 300_000], ids=["none", "a few lines", "half a checkpoint"])
def test_a_full_disk_during_training_loses_no_checkpoint(room, small_disk, tmp_path, cache, count):
    finished(command(tmp_path / "whole", cache, *CELL))
    process = started(command(small_disk, cache, *CELL))
    assert wait_for(lambda: steps_done(small_disk) >= 8, process)
    filler = fill(small_disk, room)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in printed
    (line,) = [line for line in printed.splitlines() if "failed: " in line]
    assert "No space left on device" in line, line
    kept = load_checkpoint(run_folder(small_disk) / "checkpoints" / "last.pt")
    assert 3 <= kept["step"] < 60
    filler.unlink()
    again = finished(command(small_disk, cache, *CELL))
    assert f"continues from step {kept['step']}" in again
    assert_same(last_checkpoint(small_disk), last_checkpoint(tmp_path / "whole"))
    assert read_record(run_folder(small_disk) / "record.json").status == "finished"
    assert not list(small_disk.rglob("*.tmp"))
    count("full disks survived")


def test_a_full_disk_at_the_record_loses_no_training(small_disk, tmp_path, cache, count):
    (small_disk / "filler").write_bytes(bytes(1000))
    output = small_disk / "runs"
    process = started(command(output, cache, *CELL))
    assert wait_for(lambda: steps_done(output) >= 59 if output.exists() else False, process)
    # The last checkpoint is being written or complete; detections and the record follow.
    assert wait_for(lambda: _finished_training(output), process)
    filler = fill(small_disk, 0)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in printed and "No space left" in printed
    filler.unlink()
    assert "continues from step 60 of 60" in finished(command(output, cache, *CELL))
    assert read_record(run_folder(output) / "record.json").status == "finished"
    count("full disks survived")


def _finished_training(output: Path) -> bool:
    path = run_folder(output) / "checkpoints" / "last.pt"
    with contextlib.suppress(Exception):
        return load_checkpoint(path)["step"] == 60
    return False
