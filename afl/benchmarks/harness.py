"""Measures two sides in one process, and writes the results.

Times are medians over alternating repetitions, after one warm-up repetition, so that other load on the machine affects both sides
equally. The order is shuffled in each repetition, so that no side always finds the caches that the same other side has filled.
Memory is the number of bytes that the work requests, not the memory that the system assigns.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from afl.tracking import git_state
from afl.tracking.environment import cpu_name


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: name and size of the measured work.
        ours, theirs: median seconds, bytes or counts of this project and of the other side; None if not measured.
        unit: ``s``, ``B`` or empty for counts.
        ratio: compared with the budget, usually theirs / ours.
        budget: the smallest allowed ratio (``at_most`` false) or the largest (true); None without a budget.
        ours_memory, theirs_memory: bytes, if they were measured in addition to the time.
        note: description of the other side, or the reason for a missing figure.
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

    @classmethod
    def speed_up(cls, what: str, ours: float, theirs: float, **more: Any) -> Row:
        """How many times as fast as theirs."""
        return cls(what, ours, theirs, ratio=theirs / ours, **more)

    @classmethod
    def share(cls, what: str, ours: float, theirs: float, **more: Any) -> Row:
        """Ours as a share of theirs, with an upper limit as budget."""
        return cls(what, ours, theirs, ratio=ours / theirs, at_most=True, **more)

    @classmethod
    def limited(cls, what: str, ours: float | None = None, **more: Any) -> Row:
        """A figure with an upper limit as budget."""
        return cls(what, ours, ratio=ours, at_most=True, **{"unit": ""} | more)

    @property
    def verdict(self) -> str:
        """``met``, ``missed`` or ``not measured``; empty without a budget."""
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
    *,
    warm: bool = False,
) -> dict[str, float]:
    """Median seconds of each side; every repetition runs all sides once in shuffled order, after one warm-up repetition.

    With ``warm`` each side runs once, untimed, directly before it is timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    shuffled = random.Random(0)
    for repetition in range(repetitions + 1):
        for name, work in shuffled.sample(list(sides.items()), len(sides)):
            if warm:
                work()
            synchronise()
            started = clock()
            work()
            synchronise()
            if repetition:
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bytes_saved(forward: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps between ``forward`` and its backward pass; shared memory is counted once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(kept.values())


def peak_bytes(work: Callable[[], object]) -> int:
    """Peak bytes of tensors during ``work``, in addition to those that existed before."""
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
    """Everything except the code that the figures depend on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": gpu,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "git": git_state(),
    }
