"""Signals to a run in this process: what is saved, who has the last word, and that a waiting run hears them."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from afl.training import loop, run_cell
from afl.training.distributed import World
from afl.training.interruption import INTERRUPTED, SIGNALS, Interruption
from afl.training.lock import run_lock

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
