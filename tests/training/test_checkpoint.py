"""Checkpoints are written completely or not at all, and damage is detected."""

import io
import os

import pytest
import torch

from afl.training.checkpoint import (
    FORMAT,
    CheckpointError,
    load_checkpoint,
    load_latest,
    save_checkpoint,
    set_aside,
)


def state(value: float, run: str = "abc") -> dict:
    return {"run": run, "model": {"w": torch.full((1000,), float(value))}, "step": int(value)}


def test_saved_weights_are_restored_and_readable_by_torch_load(tmp_path):
    path = save_checkpoint(tmp_path, state(3))
    assert load_checkpoint(path)["model"]["w"].eq(3).all()
    assert torch.load(path, weights_only=True)["model"]["w"].eq(3).all()


def test_the_previous_checkpoint_replaces_a_truncated_last_one(tmp_path):
    save_checkpoint(tmp_path, state(1))
    last = save_checkpoint(tmp_path, state(2))
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    found, notes = load_latest(tmp_path, "abc")
    assert found["step"] == 1
    assert len(notes) == 1 and "last.pt" in notes[0]


def test_one_flipped_bit_in_the_weights_is_detected(tmp_path):
    path = save_checkpoint(tmp_path, state(1))
    data = bytearray(path.read_bytes())
    data[data.find(torch.ones(4).numpy().tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum|damaged"):
        load_checkpoint(path)


def test_files_of_other_programs_are_rejected(tmp_path):
    (tmp_path / "last.pt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(tmp_path / "last.pt")
    torch.save({"model": {}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not written by this project"):
        load_checkpoint(tmp_path / "other.pt")


class Code:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run_and_gives_a_one_line_error(zipped, tmp_path):
    path, mark = tmp_path / "last.pt", tmp_path / "mark"
    torch.save({"format": FORMAT, "model": Code(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint") as refused:
        load_checkpoint(path)
    assert not mark.exists()
    # torch's own message advises loading the file as code.
    assert "\n" not in str(refused.value) and "weights_only" not in str(refused.value)


def test_a_cut_off_checkpoint_names_the_one_before_it(tmp_path):
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))
    path = tmp_path / "last.pt"
    path.write_bytes(path.read_bytes()[:100])
    message = f"{path} cannot be read as a checkpoint: .*; {tmp_path}/previous.pt is the one before it"
    with pytest.raises(CheckpointError, match=f"^{message}$"):
        load_checkpoint(path)
    assert load_checkpoint(tmp_path / "previous.pt")["step"] == 1


def test_the_checkpoint_of_another_run_is_not_continued(tmp_path):
    save_checkpoint(tmp_path, state(1, run="other"))
    with pytest.raises(CheckpointError, match="another run.*delete that folder"):
        load_latest(tmp_path, "abc")


def test_without_a_usable_checkpoint_the_error_names_all_reasons_and_a_remedy(tmp_path):
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))
    for name in ("last.pt", "previous.pt"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"last\.pt.*previous\.pt.*train from the beginning"):
        load_latest(tmp_path, "abc")
    assert load_latest(tmp_path / "empty", "abc") == (None, [])


def test_a_damaged_checkpoint_never_replaces_the_good_previous_one(tmp_path):
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2)).write_bytes(b"PK")
    assert load_latest(tmp_path, "abc")[0]["step"] == 1
    assert set_aside(tmp_path).read_bytes() == b"PK"
    save_checkpoint(tmp_path, state(3))
    (tmp_path / "last.pt").unlink()
    assert load_latest(tmp_path, "abc")[0]["step"] == 1


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="there is no earlier one, so the run starts again"):
            save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(1))
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="last good one is kept"):
        save_checkpoint(tmp_path, state(2))
    monkeypatch.undo()
    assert load_latest(tmp_path, "abc")[0]["step"] == 1
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("room", [0, 100, 600, 2000, 5000])
def test_the_message_names_a_disk_that_fills_up_during_writing(room, tmp_path, monkeypatch):
    save_checkpoint(tmp_path, state(1))

    class Disk(io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > room:
                raise OSError(28, "No space left on device")
            return super().write(data)

    def small(path, mode, real=open):
        return Disk(path, mode) if str(path).endswith(".tmp") else real(path, mode)

    # If some bytes were written, torch's own error mentions positions in the file instead.
    monkeypatch.setattr("builtins.open", small)
    with pytest.raises(
        OSError, match=r"could not write .*last\.pt: .*No space left on device; the last good one is kept"
    ):
        save_checkpoint(tmp_path, state(2))
    monkeypatch.undo()
    assert load_latest(tmp_path, "abc")[0]["step"] == 1
