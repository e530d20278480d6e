"""Signals to a run: the saved checkpoint, the handler that decides at the end, and signals to waiting processes."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from afl.training import lock, loop, run_cell
from afl.training.distributed import World
from afl.training.interruption import INTERRUPTED, SIGNALS, Interruption
from afl.training.lock import RunBusy, run_lock

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def signal_in_step_five(monkeypatch):
    """``signal_in_step_five(number)``: the signal arrives during the fifth step."""

    def install(number: int) -> None:
        steps = iter(range(1, 1000))

        def set_rate(optimizer, base, factor, real=loop.set_learning_rate):
            if next(steps) == 5:
                os.kill(os.getpid(), number)
            real(optimizer, base, factor)

        monkeypatch.setattr(loop, "set_learning_rate", set_rate)

    return install


def saved_step(config) -> int:
    (path,) = Path(config.paths.output).glob("*/checkpoints/last.pt")
    return torch.load(path, weights_only=True)["step"]


def test_a_signal_saves_the_finished_step_and_writes_no_record(small_cell, signal_in_step_five):
    config = small_cell("centernet", "fl", "trainer.checkpoint_every=1000steps")
    signal_in_step_five(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, Interruption() as interruption:
        run_cell(config, interruption=interruption)
    assert left.value.code == INTERRUPTED and saved_step(config) == 5
    assert not list(Path(config.paths.output).glob("*/record.json"))
    assert run_cell(config).status == "finished"


def test_an_earlier_handler_is_called_after_the_checkpoint(small_cell, signal_in_step_five):
    config = small_cell("centernet", "fl", "trainer.checkpoint_every=1000steps")

    class Requeued(BaseException):
        pass

    def handler(number, frame):
        assert saved_step(config) == 5
        raise Requeued

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        signal_in_step_five(signal.SIGUSR2)
        with pytest.raises(Requeued), Interruption() as interruption:
            run_cell(config, interruption=interruption)
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_run_continues_if_the_earlier_handler_returns(small_cell, signal_in_step_five):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        signal_in_step_five(signal.SIGTERM)
        with Interruption() as interruption:
            record = run_cell(small_cell("centernet", "fl"), interruption=interruption)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert record.status == "finished" and heard == [signal.SIGTERM]


def test_handlers_are_restored():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interruption.asked(ALONE)
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.fixture
def heard_ctrl_c():
    """Handle Ctrl-C as at a terminal; a shell starts background processes with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_finishes_the_step_and_a_second_one_stops_immediately(heard_ctrl_c, capfd):
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.asked(ALONE)
        assert "Ctrl-C again to stop now" in capfd.readouterr().err
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("still here")
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        interruption.obey("saved")


def test_an_ignored_ctrl_c_remains_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interruption.asked(ALONE)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_prints_its_message_on_a_separate_line(heard_ctrl_c, capfd):
    with Interruption():
        os.write(2, b"step 3 of 10 ^C")
        os.kill(os.getpid(), signal.SIGINT)
        os.write(2, b"step 4 of 10")
    first, message, last = capfd.readouterr().err.splitlines()
    assert (first, last) == ("step 3 of 10 ^C", "step 4 of 10") and message.startswith("stopping after")


@pytest.mark.parametrize("signals", [(signal.SIGTERM,), (signal.SIGTERM, signal.SIGUSR1)])
def test_a_signal_during_a_collective_call_is_not_lost(signals, tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [
        context.Process(target=_ask_at_another_speed, args=(rank, signals, tmp_path / "group", answers))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = dict(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    # The signals are sent after both processes answered no for the first time, and both processes obey one after the other.
    assert found[0] == found[1] == [signals[-1], *signals[:-1]]


def _ask_at_another_speed(rank: int, signals: tuple[int, ...], group: Path, answers) -> None:
    dist.init_process_group("gloo", init_method=f"file://{group}", rank=rank, world_size=2)
    world = World(rank, 2, torch.device("cpu"), dist.group.WORLD)
    obeyed: list[int] = []

    def send() -> None:
        for number in signals:
            os.kill(os.getpid(), number)

    for number in signals:
        signal.signal(number, lambda number, frame: obeyed.append(number))
    with Interruption() as interruption:
        for step in range(6):
            if rank == 0 and step == 1:
                # By then the process waits in the all-reduce for the slower process.
                threading.Timer(0.2, send).start()
            if rank == 1:
                time.sleep(0.4)
            if interruption.asked(world):
                interruption.obey("nothing to save")
    answers.put((rank, obeyed))
    dist.destroy_process_group()


def test_missing_locks_give_a_warning_and_other_errors_are_raised(tmp_path, monkeypatch, caplog):
    def refused(number):
        def flock(file, how):
            raise OSError(number, os.strerror(number))

        return flock

    monkeypatch.setattr(fcntl, "flock", refused(errno.ENOSYS))
    with run_lock(tmp_path, wait=False):
        pass
    (line,) = caplog.messages
    assert (
        f"the file system of {tmp_path} does not support locks" in line and "Function not implemented" in line
    )
    monkeypatch.setattr(fcntl, "flock", refused(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"), run_lock(tmp_path, wait=False):
        pass


def test_the_lock_of_a_dead_owner_is_waited_for_with_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "ORPHANS_SECONDS", 0.6)
    monkeypatch.setattr(lock, "PAUSE_SECONDS", 0.1)
    context = multiprocessing.get_context("fork")
    dead = context.Process(target=int)
    dead.start()
    dead.join()
    waited = []
    with run_lock(tmp_path, wait=False):
        for owner, expected in ((dead.pid, True), (os.getpid(), False), (1, False)):
            (tmp_path / ".lock").write_text(f"process {owner} on {os.uname().nodename}")
            waited.clear()
            # A lock belongs to an open file, so a second open file of the same process cannot take it either.
            with (
                pytest.raises(RunBusy),
                run_lock(tmp_path, wait=False, while_waiting=lambda: waited.append(1)),
            ):
                pass
            assert bool(waited) is expected, owner
        (tmp_path / ".lock").write_text(f"process {dead.pid} on another-machine")
        waited.clear()
        with pytest.raises(RunBusy), run_lock(tmp_path, wait=False, while_waiting=lambda: waited.append(1)):
            pass
        assert not waited


def test_a_process_that_waits_for_a_run_obeys_a_signal(tmp_path):
    context = multiprocessing.get_context("fork")
    with run_lock(tmp_path, wait=False):
        waiting = context.Event()
        process = context.Process(target=_wait, args=(tmp_path, waiting))
        process.start()
        assert waiting.wait(20)
        os.kill(process.pid, signal.SIGTERM)
        process.join(20)
        assert process.exitcode == INTERRUPTED


def _wait(folder: Path, waiting) -> None:
    with Interruption() as interruption:

        def obey() -> None:
            waiting.set()
            if interruption.asked(ALONE):
                interruption.obey("nothing to save")

        # A lock belongs to an open file, and this process has a different one than its parent.
        with run_lock(folder, wait=True, while_waiting=obey):
            raise AssertionError("it was busy")
