"""Stopping a table's sweep: what processes remain, by their entries below /proc."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from afl.config import CONF
from afl.tables.child import interrupted_by_signals, start, stop

SLEEPER = "import time; print('ready', flush=True); time.sleep(300)"
# A process that starts another process, as joblib does.
FAMILY = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {SLEEPER!r}])
time.sleep(300)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SLEEPER


def members(group: int) -> list[int]:
    """The living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, own = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(own) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def started(code: str, log: Path) -> subprocess.Popen:
    with open(log, "w") as file:
        process = start([sys.executable, "-c", code], file)
    while "ready" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_children_of_the_child_end_too(tmp_path):
    process = started(FAMILY, tmp_path / "log")
    assert len(members(process.pid)) == 2
    stop(process)
    assert members(process.pid) == [] and process.returncode == -signal.SIGTERM


def test_ctrl_c_ends_a_child_that_does_not_obey(tmp_path, monkeypatch):
    process = started(STUBBORN, tmp_path / "log")
    wait = process.wait

    def interrupted_once() -> int:
        monkeypatch.setattr(process, "wait", wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "wait", interrupted_once)
    stop(process)
    assert members(process.pid) == [] and process.returncode == -signal.SIGKILL


def test_ctrl_c_while_the_user_is_told_leaves_no_child(tmp_path):
    process = started(FAMILY, tmp_path / "log")

    def interrupted() -> None:
        raise KeyboardInterrupt

    stop(process, interrupted)
    assert members(process.pid) == [] and process.returncode == -signal.SIGKILL


def test_a_child_that_has_ended_is_no_error(tmp_path):
    process = started(SLEEPER.replace("300", "0"), tmp_path / "log")
    process.wait()
    stop(process)
    assert process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_interrupt_as_ctrl_c_does_and_handlers_are_restored(number):
    # The tests themselves may run under ``nohup``.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with interrupted_by_signals():
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
                time.sleep(5)
            # ``timeout`` sends its signal twice.
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_nohup_still_ignores_a_closed_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupted_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def table(tmp_path) -> tuple[list[str], dict]:
    """The command of a table with two runs at a time, and the arguments of its process."""
    small = (
        "[dataset.folder.num_train=24,dataset.folder.num_val=10,initial_weights=null,trainer.batch_size=4,"
        "trainer.max_duration=400steps,trainer.log_every=1steps,trainer.device=cpu]"
    )
    command = [
        sys.executable, "-m", "scripts.table", "table=shapes", "action=run", "seeds=[0]", "jobs=2", "measure=false",
        "table.detectors=[centernet]", "table.losses=[fl,afl]", "table.datasets=[shapes_coco]", f"overrides={small}",
        f"paths.output={tmp_path}/outputs", f"paths.cache={tmp_path}/cache",
    ]  # fmt: skip
    return command, {"cwd": CONF.parent, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}


def children_in_training(process: subprocess.Popen, outputs: Path) -> list[int]:
    """The children of a table whose runs have trained for three steps."""

    def steps() -> int:
        return min(
            [log.read_text().count("\n") for log in outputs.glob("shapes_coco-*/metrics.jsonl")] or [0]
        )

    while process.poll() is None and steps() < 3:
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    return [int(child) for child in children]


def assert_stopped(children: list[int], outputs: Path) -> None:
    """No process remains, and a checkpoint but no record exists."""
    assert all(members(child) == [] for child in children)
    saved = list(outputs.glob("shapes_coco-*/checkpoints/last.pt"))
    assert saved and not list(outputs.glob("shapes_coco-*/record.json"))


def test_sigterm_to_a_table_stops_its_runs_and_the_table_continues(tmp_path, table):
    command, own = table
    process = subprocess.Popen(command, **own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    children = children_in_training(process, tmp_path / "outputs")
    process.terminate()
    process.terminate()
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command continues from here" in printed, printed
    assert_stopped(children, tmp_path / "outputs")


def test_closing_the_terminal_of_a_table_stops_its_runs(tmp_path, table):
    command, own = table
    ours, theirs = os.openpty()
    # A session with this terminal; the kernel sends SIGHUP to its leader, and later writes to the terminal fail. Tests under ``nohup``
    # would pass on that SIGHUP is ignored.
    opened = (
        "import fcntl, os, signal, sys, termios; signal.signal(signal.SIGHUP, signal.SIG_DFL);"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", opened, *command],
        **own,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    children = children_in_training(process, tmp_path / "outputs")
    os.close(ours)
    process.wait(timeout=120)
    assert_stopped(children, tmp_path / "outputs")
