"""The commands: python -m scripts.NAME. Each of them takes --help."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("hydra") is None:
    _python = Path(__file__).resolve().parents[1] / ".venv" / "bin" / "python"
    _use = (
        f"use {_python} -m scripts.NAME"
        if _python.exists()
        else "run `make setup`, then use .venv/bin/python -m scripts.NAME"
    )
    sys.exit(f"{sys.executable} lacks this project's packages: {_use}, or activate .venv")
