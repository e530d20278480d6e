"""Many at once: two commands at one cell, torchrun at a busy one, processes that die, tables built while runs write."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from afl.reporting import TableSpec, build_table, load_records
from afl.tracking import read_record, write_record
from afl.training.lock import run_lock
from tests.faults.short_run import (
    TORCHRUN,
    command,
    finished,
    run_folder,
    started,
    steps_done,
    wait_for,
)

pytestmark = pytest.mark.faults
CELL = ("detector=centernet", "loss=afl", "trainer.max_duration=60steps")
SOON = 60  # seconds; a job that hangs would take the hour that processes wait for each other


def test_of_two_commands_at_one_cell_one_runs_and_one_says_who_does(tmp_path, cache, count):
    both = [started(command(tmp_path, cache, *CELL)) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    busy = [text for text in printed if "is being run by process" in text]
    done = [text for text in printed if "  AP " in text]
    # Who comes late enough finds the run finished.
    assert len(done) == 1 and len(busy) + sum("is finished" in text for text in printed) == 1, printed
    if busy:
        assert f"process {both[printed.index(done[0])].pid} on {os.uname().nodename}" in busy[0]
    assert read_record(run_folder(tmp_path) / "record.json").status == "finished"
    count("races won by one process")


def test_all_processes_of_torchrun_leave_a_busy_cell_together(tmp_path, cache, count):
    finished(command(tmp_path, cache, *CELL))
    folder = run_folder(tmp_path)
    (folder / "record.json").unlink()
    with run_lock(folder, wait=False):
        begin = time.monotonic()
        printed = finished(command(tmp_path, cache, *CELL, start=TORCHRUN))
        assert time.monotonic() - begin < SOON
    assert f"is being run by process {os.getpid()}" in printed
    assert not (folder / "record.json").exists()
    assert "  AP " in finished(command(tmp_path, cache, *CELL, start=TORCHRUN))
    count("races won by one process")


def test_the_lock_of_a_dead_process_is_none(tmp_path, cache, count):
    process = started(command(tmp_path, cache, *CELL))
    assert wait_for(lambda: steps_done(tmp_path) >= 2, process)
    process.kill()
    process.communicate()
    assert (run_folder(tmp_path) / ".lock").read_text().startswith(f"process {process.pid} ")
    assert "  AP " in finished(command(tmp_path, cache, *CELL))
    count("races won by one process")


@pytest.mark.parametrize("phase", ["training", "evaluation"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_job(rank, phase, tmp_path, cache, count):
    # Many evaluations in a row, so that most of the time is spent in them.
    often = ("trainer.evaluate_every=2steps",) if phase == "evaluation" else ()
    arguments = command(tmp_path, cache, *CELL, "trainer.max_duration=4000steps", *often, start=TORCHRUN)
    process = started(arguments)
    assert wait_for(lambda: steps_done(tmp_path) >= 6, process)
    begin = time.monotonic()
    os.kill(_worker(process.pid, rank), signal.SIGKILL)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode != 0 and time.monotonic() - begin < SOON
    assert "Signal 9 (SIGKILL)" in printed and "gloo/transport" not in printed, printed
    if rank == 1 and "cannot go on" in printed:  # torchrun may have ended the other one before it noticed
        assert "another process" in read_record(run_folder(tmp_path) / "record.json").error
    count("jobs that ended within a minute of the death of one of their processes")


def _worker(launcher: int, rank: int) -> int:
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(fields[1]) == launcher and f"RANK={rank}".encode() in variables:
            return int(path.name)
    raise AssertionError(f"torchrun has no process of rank {rank}")


def test_an_error_of_one_process_is_what_the_job_says(tmp_path, cache, count):
    finished(command(tmp_path / "once", cache, *CELL, "trainer.max_duration=1steps"))
    (image,) = sorted(cache.glob("shapes/shapes-*/JPEGImages/000003.png"))[:1]
    whole = image.read_bytes()
    try:
        image.write_bytes(whole[:50])
        begin = time.monotonic()
        printed = finished(command(tmp_path, cache, *CELL, start=TORCHRUN), code=1)
        assert time.monotonic() - begin < 2 * SOON
    finally:
        image.write_bytes(whole)
    assert "000003.png (id 3) is damaged and cannot be decoded; fetch the image again" in printed
    count("jobs that ended within a minute of the death of one of their processes")


def test_a_table_built_while_runs_write_sees_whole_records_only(tmp_path, cache, count):
    finished(command(tmp_path / "run", cache, *CELL))
    record = read_record(run_folder(tmp_path / "run") / "record.json")
    path = tmp_path / "records" / "cell.json"
    write_record(path, record)
    writer = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(path, record))
    writer.start()
    try:
        for _ in range(300):
            records = load_records([path])
            assert records == [record]
        table = build_table(
            records,
            TableSpec(
                name="race",
                detectors=[record.detector],
                losses=[record.loss],
                datasets=[record.dataset],
                seeds=[0],
                metrics=["AP"],
                baseline=record.loss,
                title="race",
            ),
        )
        assert "centernet" in table.to_markdown()
    finally:
        writer.kill()
        writer.join()
    count("readings of a record while it was written", 300)


def _write_for_ever(path: Path, record) -> None:
    while True:
        write_record(path, record)
