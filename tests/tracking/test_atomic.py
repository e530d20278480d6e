"""Files are whole or not there: writes that fail half-way leave what was there before."""

from __future__ import annotations

import errno
import json
import os
import threading

import numpy as np
import pytest

from afl.tracking import atomic


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "record.json"
    atomic.write_json(path, {"a": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_json(path, {"a": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["record.json"]


def test_values_without_json_form_leave_no_file(tmp_path):
    with pytest.raises(ValueError):
        atomic.write_json(tmp_path / "record.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_reader_sees_only_whole_files(tmp_path):
    path = tmp_path / "new" / "text"
    atomic.write_text(path, "0" * 100_000)
    seen, stop = set(), threading.Event()

    def read():
        while not stop.is_set():
            seen.add(path.read_text())

    thread = threading.Thread(target=read)
    thread.start()
    for digit in "123456789":
        atomic.write_text(path, digit * 100_000)
    stop.set()
    thread.join()
    assert seen <= {digit * 100_000 for digit in "0123456789"}


def test_new_files_have_the_usual_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    atomic.write_text(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode


def test_arrays_equal_what_numpy_reads(tmp_path):
    atomic.write_arrays(tmp_path / "a.npz", {"x": np.arange(5), "y": np.eye(2)})
    with np.load(tmp_path / "a.npz") as file:
        assert file["x"].tolist() == [0, 1, 2, 3, 4]
        assert file["y"].tolist() == [[1, 0], [0, 1]]
