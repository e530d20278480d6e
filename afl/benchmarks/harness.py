"""Measuring two things side by side in one process, and writing down what came out.

Times are medians over repetitions that take turns, after one that does not count, so that a busy machine slows both sides
alike and the ratio holds. Memory is a number of bytes that the work asked for, not what the system happened to give.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from afl.tracking import git_state


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured, of what size.
        ours, theirs: median seconds, bytes or counts of this project and of the other side; None: not measured.
        unit: ``s``, ``B`` or empty for counts.
        ratio: what is held against the budget, usually theirs / ours.
        budget: the least ratio allowed (``at_most`` false) or the largest (true); None where there is no budget.
        ours_memory, theirs_memory: bytes, where they were measured beside the time.
        note: who the other side is, or why there is no figure.
    """

    what: str
    ours: float | None = None
    theirs: float | None = None
    unit: str = "s"
    ratio: float | None = None
    budget: float | None = None
    at_most: bool = False
    ours_memory: float | None = None
    theirs_memory: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """``met``, ``missed`` or ``not measured``; empty where nothing was asked."""
        if self.budget is None:
            return ""
        if self.ratio is None:
            return "not measured"
        met = self.ratio <= self.budget if self.at_most else self.ratio >= self.budget
        return "met" if met else "missed"


def take_turns(
    sides: Mapping[str, Callable[[], object]],
    repetitions: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each side; every repetition runs all of them once, after a first one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(repetitions + 1):
        for name, work in sides.items():
            synchronise()
            started = clock()
            work()
            synchronise()
            if repetition:
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bytes_saved(forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps between ``forward`` and its backward; what shares memory counts once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(kept.values())


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes of tensors that were alive at once during ``work``, above what was there before it."""
    work()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        synchronise()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    moves = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(moves, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def quantity(value: float | None, unit: str) -> str:
    """A figure with three digits in a readable unit; ``unit`` as in ``Row``."""
    if value is None:
        return ""
    if unit == "s":
        if value >= 120:
            return f"{value / 60:.1f} min"
        for name, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
            if value >= size:
                return f"{value / size:.3g} {name}"
        return f"{value / 1e-9:.3g} ns"
    if unit == "B":
        return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"
    return f"{value:.4g}"


def machine() -> dict[str, object]:
    """What the figures depend on beside the code."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "git": git_state(),
    }


def _cpu_name() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
