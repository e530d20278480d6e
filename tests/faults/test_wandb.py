"""Runs with a W&B that fails end with the checkpoint of a run without W&B, and with a finished record."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from afl.tracking import read_record
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
KEY = "0123456789" * 4


@pytest.fixture(scope="module")
def without(tmp_path_factory, cache) -> Path:
    output = tmp_path_factory.mktemp("without")
    finished(command(output, cache, *CELL))
    return output


def assert_unchanged(output: Path, without: Path, count) -> None:
    assert_same(last_checkpoint(output), last_checkpoint(without))
    with_it, without_it = (read_record(run_folder(folder) / "record.json") for folder in (output, without))
    assert with_it.status == "finished" and with_it.metrics == without_it.metrics
    assert with_it.key == without_it.key
    count("runs unchanged by a W&B that fails")


def mirrored(output: Path, cache: Path, *more: str) -> list[str]:
    return [item for item in command(output, cache, *CELL, *more) if item != "logger=none"] + ["logger=wandb"]


def test_a_run_survives_the_death_of_the_wandb_process(tmp_path, cache, without, count):
    process = started(mirrored(tmp_path, cache, "logger.mode=offline"))
    assert wait_for(lambda: steps_done(tmp_path) >= 8, process)
    for child in _children(process.pid):
        os.kill(child, signal.SIGKILL)
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == 0 and "Traceback" not in printed, printed
    assert_unchanged(tmp_path, without, count)


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = path.read_text().rsplit(")", 1)
        except OSError:
            continue
        if int(fields.split()[1]) == parent and "wandb" in name:
            found.append(int(path.parent.name))
    assert found, "W&B has no process of its own"
    return found


def test_a_run_survives_a_full_disk_of_wandb(tmp_path, cache, without, count):
    folder = tmp_path / run_folder(without).name / "wandb"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted without being root")
    try:
        (folder / "filler").write_bytes(bytes(16_000))
        printed = finished(mirrored(tmp_path, cache, "logger.mode=offline"))
        assert "Traceback" not in printed, printed
        assert_unchanged(tmp_path, without, count)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("key", [KEY, ""], ids=["no network", "no account"])
def test_a_run_survives_a_server_that_does_not_respond(key, tmp_path, cache, without, count):
    variables = {
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_API_KEY": key,
        "NETRC": str(tmp_path / "netrc"),
    }
    mode = "online" if key else "auto"
    printed = finished(mirrored(tmp_path / "runs", cache, f"logger.mode={mode}"), **variables)
    assert "Traceback" not in printed, printed
    assert_unchanged(tmp_path / "runs", without, count)
