"""A command that runs without the project's packages names the interpreter that has them."""

from __future__ import annotations

import shutil
import subprocess
import sys

from afl.config import CONF


def test_python_without_the_packages_names_the_right_interpreter(tmp_path):
    """With ``-S`` and ``-I`` an interpreter only has its standard library."""
    shutil.copytree(
        CONF.parent / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__")
    )
    program = "import sys; sys.path.insert(0, '.'); import runpy; runpy.run_module('scripts.predict', run_name='__main__')"

    def said() -> str:
        done = subprocess.run(
            [sys.executable, "-S", "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    assert "run `make setup`, then use .venv/bin/python" in said()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    assert f"use {tmp_path}/.venv/bin/python -m scripts.NAME" in said()
