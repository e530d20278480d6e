"""Every command responds to ``--help`` and to a mistake before it loads torch, matplotlib or pandas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if "__main__" in path.read_text())
HEAVY = ("torch", "matplotlib", "pandas", "cv2", "wandb")
PROGRAM = """
import runpy, sys
name, argument = sys.argv[1:]
sys.argv = [f"scripts/{name}.py", argument]
try:
    runpy.run_module(f"scripts.{name}", run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("ended with", end.code)
loaded = [heavy for heavy in HEAVY if heavy in sys.modules]
print("loaded", loaded)
""".replace("HEAVY", repr(HEAVY))


def run(name: str, argument: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, argument], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_the_command_and_loads_no_heavy_module(name):
    printed = run(name, "--help")
    assert f"python -m scripts.{name}" in printed
    assert "loaded []" in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_is_reported_before_heavy_modules_are_loaded(name):
    printed = run(name, "no_such_option=1")
    assert "ended with" in printed and "ended with None" not in printed
    assert "loaded []" in printed
    assert "Traceback" not in printed
