"""Runs of a few seconds, as commands and as configs, and comparisons of their results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

import torch
from omegaconf import DictConfig

from afl.config import CONF
from afl.training.compose import compose_cell

SMALL = (
    "dataset=shapes_coco", "dataset.folder.num_train=24", "dataset.folder.num_val=10", "initial_weights=null",
    "logger=none", "trainer.progress=none", "trainer.batch_size=4", "trainer.eval_batch_size=4",
    "trainer.max_duration=24steps", "trainer.checkpoint_every=3steps", "trainer.log_every=1steps",
    "trainer.pictures=0", "trainer.device=cpu",
)  # fmt: skip
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
DETECTORS = sorted(path.stem for path in (CONF / "detector").glob("*.yaml"))
LOSSES = sorted(
    str(path.relative_to(CONF / "loss").with_suffix("")) for path in (CONF / "loss").rglob("*.yaml")
)


def overrides(output: Path, cache: Path) -> list[str]:
    return [*SMALL, f"paths.output={output}", f"paths.cache={cache}"]


def cell(output: Path, cache: Path, detector: str, loss: str, *more: str) -> DictConfig:
    """The config of a small run."""
    return compose_cell(detector=detector, loss=loss, overrides=[*overrides(output, cache), *more])


def command(output: Path, cache: Path, *more: str, start: tuple[str, ...] = ()) -> list[str]:
    """``python [START] -m scripts.train ...`` of a small run; ``more`` gives detector and loss."""
    return [sys.executable, *start, "-m", "scripts.train", *overrides(output, cache), *more]


def started(arguments: list[str], *, own_session: bool = False, **variables: str) -> subprocess.Popen:
    """Start the command with its output in one pipe; in a new session if all its processes will receive a signal."""
    return subprocess.Popen(
        arguments,
        cwd=CONF.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=own_session,
        # If a shell starts the tests in the background, they ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def finished(arguments: list[str], code: int = 0, **variables: str) -> str:
    """The output of the command, which must end with this exit code within ten minutes."""
    process = started(arguments, **variables)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == code, printed
    return printed


def wait_for(happened: Callable[[], bool], process: subprocess.Popen, seconds: float = 120) -> bool:
    """Wait until the condition is true; returns False if the process ends first."""
    deadline = monotonic() + seconds
    while monotonic() < deadline:
        if happened():
            return True
        if process.poll() is not None:
            return False
        sleep(0.005)
    raise AssertionError(f"nothing happened in {seconds:g} s")


def steps_done(output: Path) -> int:
    """Number of lines in the curves of the only run below ``output``."""
    return sum(map(lines_in, output.glob("shapes*")))


def lines_in(folder: Path) -> int:
    """Number of lines in the curves of a run directory."""
    path = folder / "metrics.jsonl"
    return path.read_text(encoding="utf-8").count("\n") if path.exists() else 0


def run_folder(output: Path) -> Path:
    (folder,) = output.glob("shapes*")
    return folder


def last_checkpoint(output: Path) -> dict:
    return read_checkpoint(run_folder(output) / "checkpoints" / "last.pt")


def read_checkpoint(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same(a: object, b: object, where: str = "checkpoint") -> None:
    """Assert bit-identical values in nested containers, except the time of a run and settings that do not affect the result."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for name in a:
            if name not in ("seconds", "paths", "logger", "num_workers"):
                assert_same(a[name], b[name], f"{where}.{name}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), f"{where} differs"
    else:
        assert a == b, f"{where}: {a!r} is not {b!r}"
