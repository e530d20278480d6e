"""A run that is stopped between two checkpoints and restarted ends like an uninterrupted run, for every detector and loss."""

from __future__ import annotations

import pytest

from afl.training import loop, run_cell
from tests.faults.short_run import (
    DETECTORS,
    LOSSES,
    assert_same,
    cell,
    last_checkpoint,
    read_checkpoint,
    run_folder,
)

pytestmark = pytest.mark.faults
# The variants of AFL with different state; others only differ in a number.
PARTS = {"ablation/afl_scheduled", "ablation/cbfl_warmup"}
CELLS = [("retinanet", loss) for loss in LOSSES if "/" not in loss or loss in PARTS]
CELLS += [
    (detector, loss) for detector in DETECTORS for loss in ("afl_per_class", "ghm") if detector != "retinanet"
]
CELLS += [
    ("retinanet", "efl", "dataset.repeat_threshold=0.5"),
    ("retinanet", "sampling_free", "trainer.evaluate_every=3steps"),
]
# An epoch has six steps. The run stops in the second epoch, and its last checkpoint is from the first.
OPTIONS = (
    "trainer.max_duration=11steps",
    "trainer.checkpoint_every=4steps",
    "trainer.accumulate=2",
    "trainer.ema=0.9",
)


class Killed(BaseException):
    """An error that the code does not catch."""


def stop(monkeypatch, config, in_step: int) -> None:
    """Run until the loop reaches this step."""
    steps = iter(range(1000))

    def set_rate(optimizer, base, factor, real=loop.set_learning_rate):
        if next(steps) == in_step:
            raise Killed
        real(optimizer, base, factor)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "set_learning_rate", set_rate)
        with pytest.raises(Killed):
            run_cell(config)


def stopped_and_resumed(monkeypatch, output, cache, *of_cell: str) -> dict:
    config = cell(output, cache, *of_cell, *OPTIONS)
    stop(monkeypatch, config, in_step=7)
    assert last_checkpoint(output)["step"] == 4
    assert run_cell(config).status == "finished"
    return last_checkpoint(output)


@pytest.mark.parametrize("of_cell", CELLS, ids="-".join)
def test_resuming_is_exact(of_cell, monkeypatch, tmp_path, cache, count):
    run_cell(cell(tmp_path / "whole", cache, *of_cell, *OPTIONS))
    found = stopped_and_resumed(monkeypatch, tmp_path / "stopped", cache, *of_cell)
    assert_same(found, last_checkpoint(tmp_path / "whole"))
    count("cells resumed exactly, loss state and loader position included")


def test_the_number_of_loader_processes_may_change_when_resuming(monkeypatch, tmp_path, cache, count):
    run_cell(cell(tmp_path / "whole", cache, "fcos", "afl", *OPTIONS))
    found = stopped_and_resumed(
        monkeypatch, tmp_path / "stopped", cache, "fcos", "afl", "trainer.num_workers=2"
    )
    assert_same(found, last_checkpoint(tmp_path / "whole"))
    count("cells resumed exactly, loss state and loader position included")


def truncated(data: bytes, other: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes, other: bytes) -> bytes:
    """Flip one bit of the weights, which are most of the file."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def no_checkpoint(data: bytes, other: bytes) -> bytes:
    return b"something else"


def of_another_run(data: bytes, other: bytes) -> bytes:
    return other


@pytest.mark.parametrize("damage", [truncated, flipped, no_checkpoint, of_another_run])
def test_the_previous_checkpoint_replaces_an_unusable_last_one(
    damage, monkeypatch, tmp_path, cache, caplog, count
):
    run_cell(cell(tmp_path / "whole", cache, "centernet", "afl_per_class", *OPTIONS))
    run_cell(cell(tmp_path / "other", cache, "centernet", "afl_per_class", *OPTIONS, "seed=1"))
    config = cell(tmp_path / "stopped", cache, "centernet", "afl_per_class", *OPTIONS)
    stop(monkeypatch, config, in_step=9)
    folder = run_folder(tmp_path / "stopped") / "checkpoints"
    assert read_checkpoint(folder / "last.pt")["step"] == 8
    other = run_folder(tmp_path / "other") / "checkpoints" / "last.pt"
    damaged = damage((folder / "last.pt").read_bytes(), other.read_bytes())
    (folder / "last.pt").write_bytes(damaged)
    caplog.set_level("INFO")
    assert run_cell(config).status == "finished"
    said = "\n".join(caplog.messages)
    assert f"it is kept as {folder / 'damaged.pt'}; the run uses the previous checkpoint of step 4" in said, (
        said
    )
    assert str(folder / "last.pt") in said and "continues from step 4 of 11" in said, said
    assert (folder / "damaged.pt").read_bytes() == damaged
    assert_same(last_checkpoint(tmp_path / "stopped"), last_checkpoint(tmp_path / "whole"))
    count("unusable checkpoints passed over for the one before, resumed exactly")
