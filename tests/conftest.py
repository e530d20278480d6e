"""Fixtures shared by all tests."""

from __future__ import annotations

import ast
import os
from collections import Counter
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Without a GPU the fused kernels run in Triton's interpreter, which must be selected before triton is imported.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A developer's settings of W&B change what it does, and a test must never write to a developer's project.
for name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[name]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # Threads slow down operations on small tensors, and two test processes share the machine.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the small real data sets: ``$AFL_SHARED_DATA``, or ``shared/data`` next to the checkout."""
    folder = Path(os.environ.get("AFL_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "README.md").is_file():
        pytest.skip(f"the small real data sets are not here ({folder}); set AFL_SHARED_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return ROOT


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the module docstring of every test file, which names the truth that the file compares with."""
    passed = Counter(report.nodeid.split("::")[0] for report in terminalreporter.stats.get("passed", []))
    if not passed:
        return
    terminalreporter.section("what was compared with what")
    for path, count in sorted(passed.items()):
        document = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
        terminalreporter.write_line(
            f"{count:4d} passed  {path}: {' '.join(document.split(chr(10) * 2)[0].split())}"
        )
