"""Versions, hardware, and the state of the code of a run."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "numpy", "pycocotools", "lvis")
# The code that affects results; the rest of the project only displays or stores them.
SOURCE = ("afl/losses", "afl/training", "afl/evaluation", "datasets", "detectors")


def environment(device: str = "cpu") -> dict:
    """Versions and hardware.

    Args:
        device: the torch device of the run, ``cpu`` or ``cuda:0``.

    Returns:
        python, platform, one version per package (None if not installed), cpu, cpu_count (usable by this
        process), threads (torch's), gpu (None without one) and device: name of the processor or GPU that the run used.
    """
    import torch

    kind = torch.device(device)
    gpu = (
        torch.cuda.get_device_name(kind if kind.type == "cuda" else 0) if torch.cuda.is_available() else None
    )
    cpu = cpu_name()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in PACKAGES},
        "cpu": cpu,
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "device": gpu if kind.type == "cuda" else cpu,
    }


def git_state(root: str | Path = ROOT) -> dict:
    """State of the code.

    Returns:
        sha: commit, None outside a repository or without git; dirty: whether tracked files differ from it,
        None likewise; source: 12 hexadecimal digits of the Python files that results depend on. Two runs are
        comparable if their ``source`` is the same, even if other files changed between them.
    """
    root = Path(root)
    sha = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    digest = hashlib.sha256()
    for file in sorted(file for folder in SOURCE for file in (root / folder).rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return {
        "sha": sha or None,
        "dirty": None if sha is None or status is None else bool(status),
        "source": digest.hexdigest()[:12],
    }


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command; None if it fails or git is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
