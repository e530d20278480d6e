"""Signals to a run in this process: what is saved, who has the last word, and that a waiting run hears them."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from afl.training import lock, loop, run_cell
from afl.training.distributed import World
from afl.training.interruption import INTERRUPTED, SIGNALS, Interruption
from afl.training.lock import RunBusy, run_lock

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def signal_in_step_five(monkeypatch):
    """``signal_in_step_five(number)``: it arrives while the fifth step is computed."""

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


def test_the_step_is_finished_and_saved_and_no_record_is_left(small_cell, signal_in_step_five):
    config = small_cell("centernet", "fl", "trainer.checkpoint_every=1000steps")
    signal_in_step_five(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, Interruption() as interruption:
        run_cell(config, interruption=interruption)
    assert left.value.code == INTERRUPTED and saved_step(config) == 5
    assert not list(Path(config.paths.output).glob("*/record.json"))
    assert run_cell(config).status == "finished"


def test_an_earlier_handler_has_the_last_word_after_the_checkpoint(small_cell, signal_in_step_five):
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


def test_a_run_goes_on_where_the_earlier_handler_wants_it_to(small_cell, signal_in_step_five):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        signal_in_step_five(signal.SIGTERM)
        with Interruption() as interruption:
            record = run_cell(small_cell("centernet", "fl"), interruption=interruption)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert record.status == "finished" and heard == [signal.SIGTERM]


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interruption.asked(ALONE)
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.fixture
def heard_ctrl_c():
    """As at a terminal: a shell starts what runs in the background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_lets_the_step_finish_and_a_second_one_does_not_wait_for_it(heard_ctrl_c, capfd):
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.asked(ALONE)
        assert "Ctrl-C again to stop at once" in capfd.readouterr().err
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("still here")
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        interruption.obey("saved")


def test_ctrl_c_that_was_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGINT)
            assert not interruption.asked(ALONE)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_file_system_without_locks_is_warned_of_and_other_failures_are_not_passed_over(
    tmp_path, monkeypatch, caplog
):
    def refused(number):
        def flock(file, how):
            raise OSError(number, os.strerror(number))

        return flock

    monkeypatch.setattr(lock.fcntl, "flock", refused(errno.ENOSYS))
    with run_lock(tmp_path, wait=False):
        pass
    (line,) = caplog.messages
    assert f"the file system of {tmp_path} keeps no locks" in line and "Function not implemented" in line
    monkeypatch.setattr(lock.fcntl, "flock", refused(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"), run_lock(tmp_path, wait=False):
        pass


def test_what_a_dead_owner_left_is_waited_for_and_not_for_ever(tmp_path, monkeypatch):
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
            # A lock belongs to an open file: another one of the same process is refused as another process is.
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


def test_who_waits_for_a_run_hears_the_signal(tmp_path):
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

        # A lock belongs to an open file: this process's own is another one than its parent's.
        with run_lock(folder, wait=True, while_waiting=obey):
            raise AssertionError("it was busy")
