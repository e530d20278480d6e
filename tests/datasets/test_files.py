"""Files are written completely or not at all; damage is detected; temporary files of dead writers are removed."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading
import time
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from datasets import files
from datasets.errors import explained
from datasets.files import DamagedFile, atomic_file, atomic_folder, read_checked, try_lock, write_checked


def write(path: Path, kind: str, ready, wait: bool) -> None:
    """Begin to write ``path``, set ``ready``, and wait a minute before the end if ``wait`` is set."""
    with atomic_folder(path) if kind == "folder" else atomic_file(path) as target:
        if kind == "folder":
            (target / "part").write_text("half")
        else:
            target.write(b"half")
            target.flush()
        ready.set()
        time.sleep(60 if wait else 0)


def begun(path: Path, kind: str) -> multiprocessing.Process:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=write, args=(path, kind, ready, True))
    process.start()
    assert ready.wait(20)
    (temporary,) = path.parent.glob(".*.tmp")
    os.utime(temporary, (0, 0))
    return process


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_only_temporary_files_of_dead_writers_are_removed(kind, tmp_path):
    path = tmp_path / "result"
    process = begun(path, kind)
    ready = multiprocessing.get_context("fork").Event()
    write(path, kind, ready, False)
    assert path.exists() and len(list(tmp_path.glob(".*.tmp"))) == 1  # the running writer's
    process.kill()
    process.join()
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    other = tmp_path / ".another.x.tmp"
    other.write_text("not ours")
    os.utime(other, (0, 0))
    with atomic_file(path) if kind == "file" else atomic_folder(path):
        assert len(list(tmp_path.glob(".result.*.tmp"))) == 1
    assert list(tmp_path.glob(".*.tmp")) == [other]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_only_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "record.json"
    files.write_json(path, {"a": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, {"a": 2})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["record.json"]


def test_values_without_json_form_write_no_file(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "record.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == []


def test_a_reader_only_sees_complete_files(tmp_path):
    path = tmp_path / "new" / "text"
    files.write_text(path, "0" * 100_000)
    seen, stop = set(), threading.Event()

    def read():
        while not stop.is_set():
            seen.add(path.read_text())

    thread = threading.Thread(target=read)
    thread.start()
    for digit in "123456789":
        files.write_text(path, digit * 100_000)
    stop.set()
    thread.join()
    assert seen <= {digit * 100_000 for digit in "0123456789"}


def test_new_files_have_the_usual_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    files.write_text(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode


def test_arrays_equal_what_numpy_reads(tmp_path):
    files.write_bytes(tmp_path / "a.npz", files.arrays_as_bytes({"x": np.arange(5), "y": np.eye(2)}))
    with np.load(tmp_path / "a.npz") as file:
        assert file["x"].tolist() == [0, 1, 2, 3, 4]
        assert file["y"].tolist() == [[1, 0], [0, 1]]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match="state.json could not be written: No space left on device; free some space"
    ):
        files.write_text(tmp_path / "state.json", "text")


def test_errors_of_the_system_are_explained_without_numbers(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    blocked = "a file has the name of a folder: move it or choose another path"
    for call, words in (
        (lambda: (tmp_path / "file").mkdir(), f"{tmp_path}/file: File exists; {blocked}"),
        (lambda: (tmp_path / "file" / "a").mkdir(), f"{tmp_path}/file/a: Not a directory; {blocked}"),
        (lambda: (tmp_path / "a").read_text(), f"{tmp_path}/a: No such file or directory; correct the path"),
        (lambda: (tmp_path / "folder").read_text(), f"{tmp_path}/folder: Is a directory; choose the path of a file"),
        (lambda: (tmp_path / "folder").rmdir() or os.rmdir(tmp_path), f"{tmp_path}: Directory not empty"),
        (lambda: os.close(10**6), "Bad file descriptor"),
        (lambda: files.write_text(tmp_path / "file" / "a", ""), f"{tmp_path}/file/a could not be written: File exists; {blocked}"),
    ):  # fmt: skip
        with pytest.raises(OSError) as caught:
            call()
        assert explained(caught.value) == words


def test_other_errors_keep_their_text(tmp_path):
    for error in (
        OSError("the disk is slow"),
        ValueError("2 errors\n"),
        urllib.error.HTTPError("u", 404, "gone", {}, None),
    ):
        assert explained(error) == str(error)
    with pytest.raises(OSError, match=r"^unreadable$"), atomic_file(tmp_path / "target"):
        raise OSError("unreadable")


def test_errors_of_the_caller_keep_their_path(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"), atomic_file(tmp_path / "target") as file:
        file.write((tmp_path / "source").read_bytes())
    assert os.listdir(tmp_path) == []


def test_a_checked_file_detects_every_changed_byte(tmp_path):
    path = tmp_path / "cache"
    data = bytes(range(256)) + b"AFL"
    write_checked(path, data)
    assert read_checked(path) == data
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DamagedFile, match="cache is damaged"):
            read_checked(path)
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFile):
            read_checked(path)


def test_a_file_has_one_lock_at_a_time(tmp_path):
    with open(tmp_path / "lock", "w") as first, open(tmp_path / "lock") as second:
        assert try_lock(first.fileno()) and not try_lock(second.fileno())
        first.close()
        assert try_lock(second.fileno())


def test_a_name_with_glob_characters_does_not_affect_other_files(tmp_path):
    other = tmp_path / ".ab.x.tmp"
    other.write_text("")
    os.utime(other, (0, 0))
    files.write_text(tmp_path / "a[b]", "")
    files.write_text(tmp_path / "a*", "")
    assert other.exists()
