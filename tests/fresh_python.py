"""Runs code in a fresh Python process, for settings that must be made before a module is imported."""

from __future__ import annotations

import os
import subprocess
import sys


def run_without_interpreter(code: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a process whose kernels are compiled: without TRITON_INTERPRET, with ``settings`` in the environment."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment | settings, capture_output=True, text=True
    )
