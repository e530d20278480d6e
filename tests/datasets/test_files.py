"""Temporary names: a killed writer's are removed by the next one, a living writer's are left alone."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from datasets.files import atomic_file, atomic_folder


def write(path: Path, kind: str, ready, wait: bool) -> None:
    """Begin to write ``path``, say so, and go on only when told to."""
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
def test_what_a_killed_writer_left_is_removed_and_nothing_of_a_living_one(kind, tmp_path):
    path = tmp_path / "result"
    process = begun(path, kind)
    ready = multiprocessing.get_context("fork").Event()
    write(path, kind, ready, False)
    assert path.exists() and len(list(tmp_path.glob(".*.tmp"))) == 1  # the living writer's
    process.kill()
    process.join()
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    other = tmp_path / ".another.x.tmp"
    other.write_text("not ours")
    os.utime(other, (0, 0))
    with atomic_file(path) if kind == "file" else atomic_folder(path):
        assert len(list(tmp_path.glob(".result.*.tmp"))) == 1
    assert list(tmp_path.glob(".*.tmp")) == [other]
