"""Concurrent processes: two commands for one run, torchrun for a busy run, processes that die, tables built during writing."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from afl.reporting import TableSpec, build_table, load_records
from afl.tracking import FINISHED, read_metrics, read_record, write_record
from afl.training import features, initial_weights, run_cell
from afl.training.lock import run_lock
from tests.faults.short_run import (
    TORCHRUN,
    cell,
    command,
    finished,
    run_folder,
    started,
    steps_done,
    wait_for,
)

pytestmark = pytest.mark.faults
CELL = ("detector=centernet", "loss=afl", "trainer.max_duration=60steps")
SOON = 60  # seconds; a job that hangs would wait for an hour


def test_of_two_commands_for_one_run_the_second_names_the_first(tmp_path, cache, count):
    both = [started(command(tmp_path, cache, *CELL)) for _ in range(2)]
    printed = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    busy = [text for text in printed if "is being run by process" in text]
    done = [text for text in printed if "evaluating on" in text]
    # A command that starts late finds the run finished.
    assert len(done) == 1 and len(busy) + sum("is finished" in text for text in printed) == 1, printed
    if busy:
        assert f"process {both[printed.index(done[0])].pid} on {os.uname().nodename}" in busy[0]
    assert read_record(run_folder(tmp_path) / "record.json").status == "finished"
    count("races won by one process")


def test_all_processes_of_torchrun_leave_a_busy_run(tmp_path, cache, count):
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


def test_a_dead_process_holds_no_lock(tmp_path, cache, count):
    process = started(command(tmp_path, cache, *CELL))
    assert wait_for(lambda: steps_done(tmp_path) >= 2, process)
    process.kill()
    process.communicate()
    assert (run_folder(tmp_path) / ".lock").read_text().startswith(f"process {process.pid} ")
    assert "  AP " in finished(command(tmp_path, cache, *CELL))
    count("races won by one process")


def test_loaders_that_outlive_a_killed_process_do_not_keep_its_lock(tmp_path, cache, count):
    process = started(command(tmp_path, cache, *CELL, "trainer.num_workers=2"))
    assert wait_for(lambda: steps_done(tmp_path) >= 2, process)
    process.kill()
    process.wait()
    with pytest.raises(BlockingIOError), open(run_folder(tmp_path) / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # they have inherited it and run for some seconds
    assert "  AP " in finished(command(tmp_path, cache, *CELL))
    count("races won by one process")


def test_a_killed_loader_gives_one_line_and_loses_no_saved_step(tmp_path, cache, count):
    process = started(command(tmp_path, cache, *CELL, "trainer.num_workers=2"))
    assert wait_for(lambda: steps_done(tmp_path) >= 8, process)
    os.kill(_children(process.pid)[0], signal.SIGKILL)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in printed, printed
    assert "a process that loads images has ended" in printed.splitlines()[-1]
    assert "lower trainer.num_workers" in read_record(run_folder(tmp_path) / "record.json").error
    assert "continues from step" in finished(command(tmp_path, cache, *CELL))
    count("processes that died, said in one line")


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return sorted(found)


def test_two_seeds_train_their_shared_features_once(tmp_path, cache, count):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_from_features, args=(tmp_path, cache, seed)) for seed in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    (features,) = tmp_path.glob("shapes_pretraining*")
    # Three steps and the figures of the evaluation, so the features were trained once.
    assert [line["step"] for line in read_metrics(features / "metrics.jsonl")] == [1, 2, 3, 3]
    assert len(list(tmp_path.glob("shapes_coco*/record.json"))) == 2
    assert not (features / "checkpoints" / "previous.pt").exists()
    count("races won by one process")


def _from_features(output: Path, cache: Path, seed: int) -> None:
    """A run whose pre-training is three steps instead of the real one."""
    own = initial_weights.pretraining_config

    def short(config):
        shortened = own(config)
        shortened.trainer.max_duration, shortened.trainer.log_every = "3steps", "1steps"
        shortened.dataset.folder.num_train, shortened.dataset.folder.num_val = 40, 32
        return shortened

    initial_weights.pretraining_config = short
    features.FEATURES = output / "none"
    config = cell(
        output,
        cache,
        "centernet",
        "fl",
        "initial_weights=shapes",
        "trainer.max_duration=2steps",
        f"seed={seed}",
    )
    assert run_cell(config).status == FINISHED


def test_a_damaged_record_is_set_aside_and_written_again_without_training(tmp_path, cache, count):
    finished(command(tmp_path, cache, *CELL))
    path = run_folder(tmp_path) / "record.json"
    whole = read_record(path)
    path.write_bytes(path.read_bytes()[:100])
    printed = finished(command(tmp_path, cache, *CELL))
    assert "is damaged" in printed and "continues from step 60 of 60" in printed
    assert read_record(path).metrics == whole.metrics
    assert path.with_name("record.damaged.json").stat().st_size == 100
    count("damaged records replaced")


@pytest.mark.parametrize("start", [(), TORCHRUN], ids=["alone", "torchrun"])
def test_a_folder_that_cannot_be_written_gives_one_line_per_process(start, tmp_path, cache, count):
    finished(command(tmp_path / "once", cache, *CELL, "trainer.max_duration=1steps"))
    output = tmp_path / "read-only"
    output.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(output)], capture_output=True
    ).returncode:
        pytest.skip("no file system can be mounted without being root")
    try:
        printed = finished(command(output, cache, *CELL, start=start), code=1)
    finally:
        subprocess.run(["umount", str(output)], check=True)
    # torchrun prints another line about its children.
    assert "scripts/train.py" not in printed and "gloo" not in printed, printed
    assert (
        "cannot be written (Read-only file system); set paths.output to a folder that you can write"
        in printed
    )
    assert "Errno" not in printed
    count("folders that cannot be written, said in one line")


@pytest.mark.parametrize("phase", ["training", "evaluation"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_job(rank, phase, tmp_path, cache, count):
    # With many evaluations, most of the time is spent in them.
    often = ("trainer.evaluate_every=2steps",) if phase == "evaluation" else ()
    arguments = command(tmp_path, cache, *CELL, "trainer.max_duration=4000steps", *often, start=TORCHRUN)
    process = started(arguments)
    assert wait_for(lambda: steps_done(tmp_path) >= 6, process)
    begin = time.monotonic()
    os.kill(_worker(process.pid, rank), signal.SIGKILL)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode != 0 and time.monotonic() - begin < SOON
    assert "Signal 9 (SIGKILL)" in printed and "gloo/transport" not in printed, printed
    if rank == 1 and "cannot continue" in printed:  # torchrun may have ended it before it noticed
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


def test_a_job_reports_the_error_of_one_process(tmp_path, cache, count):
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


def test_a_table_built_during_writing_only_reads_complete_records(tmp_path, cache, count):
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
