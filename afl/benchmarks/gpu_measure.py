"""Measurements on a GPU: the time of kernels, alternating buffers, and places where the host waits.

On a CPU the same functions serve a rehearsal with Triton's interpreter; the times have no meaning there.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

CACHE_BYTES = 2**28
ROOT = Path(__file__).resolve().parents[2]


def kernel_seconds(works: Sequence[Callable[[], object]], rounds: int = 3) -> float:
    """Mean seconds of GPU work per call; ``works`` alternate for ``rounds`` rounds after one warm-up round."""
    if not torch.cuda.is_available():
        started = time.perf_counter()
        works[0]()
        return time.perf_counter() - started
    for work in works:
        work()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(rounds):
            for work in works:
                work()
        torch.cuda.synchronize()
    on_device = [
        event
        for event in seen.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not _is_name_of_a_stretch(event)
    ]
    return 1e-6 * sum(event.time_range.elapsed_us() for event in on_device) / (rounds * len(works))


def _is_name_of_a_stretch(event) -> bool:
    """Whether an event is a named range, such as ``Optimizer.step#SGD.step``, and not a kernel."""
    return event.is_user_annotation or "#" in event.name


def buffers(logits: Tensor) -> list[Tensor]:
    """Copies of ``logits`` that together are larger than the GPU's cache."""
    size = logits.numel() * logits.element_size()
    count = max(1, min(16, -(-CACHE_BYTES // size))) if logits.is_cuda else 1
    return [logits.detach().clone().requires_grad_() for _ in range(count)]


@contextmanager
def host_waits() -> Iterator[list[str]]:
    """Collects the source lines of this project at which the host waits for the GPU."""
    found: list[str] = []
    if not torch.cuda.is_available():
        yield found
        return
    mode = torch.cuda.get_sync_debug_mode()
    before = warnings.showwarning

    def note(message, category, filename, line, *more) -> None:
        if "called a synchronizing" in str(message):  # not PyTorch's notice that the watch is a prototype
            own = [
                f
                for f in traceback.extract_stack()
                if str(ROOT) in f.filename and "site-packages" not in f.filename
            ]
            places = [f for f in own if "benchmarks" not in f.filename] or own
            found.append(f"{places[-1].filename.rsplit('/', 2)[-1]}:{places[-1].lineno}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            warnings.showwarning = before
