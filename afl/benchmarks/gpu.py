"""Losses and training steps on a GPU. One run takes about two minutes.

The time of a loss is the sum of its kernels in PyTorch's profiler, so that the ratio does not depend on the speed of the host. Calls
alternate between several buffers, which together are larger than the GPU's cache. The time of a step is the wall time of a call.
"""

from __future__ import annotations

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torchvision.ops import sigmoid_focal_loss

from afl.benchmarks.harness import Row, peak_bytes, take_turns
from afl.benchmarks.loss import case, loss_of, step
from afl.benchmarks.training_step import our_step, their_step

SIZES = ((20_000, 80), (200_000, 80), (20_000, 1203), (200_000, 1203))
LOSSES = ("cbfl", "ghm", "ohem", "ssd", "libra", "eqlv2", "efl", "seesaw", "ap_loss", "dr_loss")
DETECTORS = ("retinanet", "fcos", "centernet", "cornernet", "extremenet", "objectbox")
AGAINST_TORCHVISION = ("retinanet", "fcos")
COPY_BUDGET = {torch.float32: 1.15, torch.bfloat16: 1.3}
AFL_BUDGET, OTHERS_BUDGET, TORCHVISION_BUDGET = 1.1, 5.0, 5.0
STEP_BUDGET, EQUAL_BUDGET = 2.0, 1.3
CACHE_BYTES = 2**28
SECONDS = 180.0  # no part starts later
DEVICE = torch.device("cuda")
ROOT = Path(__file__).resolve().parents[2]


def measure(quick: bool) -> list[Row]:
    """All rows; without a GPU, only the rows with a budget, without figures."""
    if not torch.cuda.is_available():
        return _without_figures()
    batch, size, repetitions = (2, 128, 2) if quick else (16, 512, 6)
    parts: dict[str, Callable[[], list[Row]]] = {}
    for locations, classes in SIZES[:1] if quick else SIZES[::-1]:
        for dtype in COPY_BUDGET:
            name = f"losses, {locations:,} x {classes:,}, {dtype}"
            parts[name] = partial(_losses, locations, classes, dtype)
    for name in DETECTORS:
        parts[f"step, {name}"] = partial(_steps, name, batch, size, repetitions)
    parts["other losses"] = partial(_other_losses, *SIZES[0 if quick else 2])
    for name in AGAINST_TORCHVISION:
        parts[f"compiled step, {name}"] = partial(_compiled_steps, name, batch, size, repetitions)
    end = time.perf_counter() + SECONDS
    rows = []
    for what, work in parts.items():
        if time.perf_counter() < end:
            rows += _attempt(what, work)
        else:
            rows.append(Row(what, note=f"no time left of {SECONDS:g} s"))
    return rows


def _without_figures() -> list[Row]:
    note = "no GPU"
    return [
        Row(
            "FL / copy of the logits, 200,000 x 1,203, bf16",
            budget=COPY_BUDGET[torch.bfloat16],
            at_most=True,
            note=note,
        ),
        Row("AFL / FL, 200,000 x 1,203, bf16", budget=AFL_BUDGET, at_most=True, note=note),
        *(
            Row(f"step, {name}, bf16 against bf16", budget=EQUAL_BUDGET, note=note)
            for name in AGAINST_TORCHVISION
        ),
    ]


def _attempt(what: str, work: Callable[[], list[Row]]) -> list[Row]:
    """The rows of one part; a part that fails gives one row with the reason, and the other parts continue."""
    try:
        return work()
    except Exception as error:
        traceback.print_exc()
        return [Row(what, note=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")]
    finally:
        torch.cuda.empty_cache()


def kernel_seconds(works: Sequence[Callable[[], object]], rounds: int = 3) -> float:
    """Mean seconds of GPU work per call; ``works`` alternate for ``rounds`` rounds after one warm-up round."""
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
    count = max(1, min(16, -(-CACHE_BYTES // size)))
    return [logits.detach().clone().requires_grad_() for _ in range(count)]


def _losses(locations: int, classes: int, dtype: torch.dtype) -> list[Row]:
    """FL and AFL compared with a copy of the logits, with each other, and with torchvision."""
    logits, target, dense = case(locations, classes, DEVICE, dtype)
    maps = buffers(logits)
    place = torch.empty_like(logits)
    copy = kernel_seconds([lambda z=z: place.copy_(z.detach()) for z in maps])
    ours = {}
    for name in ("fl", "afl"):
        loss = loss_of(name, classes, DEVICE)
        ours[name] = kernel_seconds([step(loss, z, target) for z in maps])

    def theirs() -> None:
        logits.grad = None
        sigmoid_focal_loss(logits, dense, reduction="sum").backward()

    torchvision = kernel_seconds([theirs])
    size = f"{locations:,} x {classes:,}, {'bf16' if dtype == torch.bfloat16 else 'fp32'}"
    # The time of a map that fits into the cache is limited by kernel launches, not by memory.
    largest = (locations, classes) == SIZES[-1]
    return [
        Row(
            f"{name.upper()} / copy of the logits, {size}", ours=ours[name], theirs=copy, ratio=ours[name] / copy,
            budget=COPY_BUDGET[dtype] if largest else None, at_most=True, note="kernels alone",
        )
        for name in ours
    ] + [
        Row(
            f"AFL / FL, {size}", ours=ours["afl"], theirs=ours["fl"], ratio=ours["afl"] / ours["fl"],
            budget=AFL_BUDGET if largest else None, at_most=True, note="kernels alone",
        ),
        Row(
            f"FL, {size}", ours=ours["fl"], theirs=torchvision, ratio=torchvision / ours["fl"],
            budget=TORCHVISION_BUDGET, note="torchvision sigmoid_focal_loss, sum; kernels alone",
        ),
    ]  # fmt: skip


def _other_losses(locations: int, classes: int) -> list[Row]:
    """Every other loss compared with a copy of the logits in bf16."""
    logits, target, _ = case(locations, classes, DEVICE, torch.bfloat16)
    maps = buffers(logits)
    place = torch.empty_like(logits)
    copy = kernel_seconds([lambda z=z: place.copy_(z.detach()) for z in maps])
    rows = []
    for name in LOSSES:
        what = f"{name} / copy of the logits, {locations:,} x {classes:,}, bf16"

        def one(name: str = name, what: str = what) -> list[Row]:
            loss = loss_of(name, classes, DEVICE)
            seconds = kernel_seconds([step(loss, z, target) for z in maps[:2]], rounds=2)
            return [
                Row(what, ours=seconds, theirs=copy, ratio=seconds / copy, budget=OTHERS_BUDGET, at_most=True, note="kernels alone")
            ]  # fmt: skip

        rows += _attempt(what, one)
    return rows


def _steps(name: str, batch: int, size: int, repetitions: int) -> list[Row]:
    """Whole eager steps in bf16, compared with torchvision's for the detectors that it has."""
    ours = our_step(name, batch, size, DEVICE, torch.bfloat16, backbone="resnet50")
    rows = []
    if name in AGAINST_TORCHVISION:
        rows = _against_torchvision(name, "eager", ours, batch, size, repetitions)
    else:
        seconds, kernels = take_turns({"ours": ours}, repetitions)["ours"], kernel_seconds([ours], rounds=2)
        rows.append(
            Row(
                f"step, {name}, bf16 eager, {_setting(batch, size)}", ours=seconds, ours_memory=peak_bytes(ours),
                note=f"kernels alone {1e3 * kernels:.1f} ms",
            )
        )  # fmt: skip
    with host_waits() as waits:
        ours()
    where = "; ".join(f"{place} ({count} times)" for place, count in Counter(waits).items())
    rows.append(
        Row(
            f"host waits in a step, {name}", ours=float(len(waits)), unit="", ratio=float(len(waits)), budget=0.0, at_most=True,
            note=where,
        )
    )  # fmt: skip
    return rows


def _compiled_steps(name: str, batch: int, size: int, repetitions: int) -> list[Row]:
    """Whole steps with the compiled forward pass, compared with torchvision's."""
    started = time.perf_counter()
    ours = our_step(name, batch, size, DEVICE, torch.bfloat16, compiled=True, backbone="resnet50")
    ours()
    torch.cuda.synchronize()
    built = time.perf_counter() - started
    first = Row(f"first step, {name}, bf16 compiled", ours=built, note="building the kernels")
    return [first, *_against_torchvision(name, "compiled", ours, batch, size, repetitions)]


def _against_torchvision(
    name: str, mode: str, ours: Callable[[], None], batch: int, size: int, repetitions: int
) -> list[Row]:
    sides = {"ours": ours}
    for precision, autocast in (("fp32", None), ("bf16", torch.bfloat16)):
        sides[precision] = their_step(name, batch, size, DEVICE, autocast, backbone="resnet50")
    memory = {side: peak_bytes(work) for side, work in sides.items()}
    seconds = take_turns(sides, repetitions)
    kernels = {side: 1e3 * kernel_seconds([work], rounds=2) for side, work in sides.items()}
    rows = [
        Row(
            f"step, {name}, bf16 {mode} against {other}, {_setting(batch, size)}", ours=seconds["ours"], theirs=seconds[other],
            ratio=seconds[other] / seconds["ours"], budget=budget, ours_memory=memory["ours"], theirs_memory=memory[other],
            note=f"torchvision; kernels alone {kernels['ours']:.1f} against {kernels[other]:.1f} ms",
        )
        for other, budget in (("fp32", STEP_BUDGET), ("bf16", EQUAL_BUDGET))
    ]  # fmt: skip
    least = min(memory["fp32"], memory["bf16"])
    rows.append(
        Row(
            f"memory of the step / theirs, {name}, bf16 {mode}", ours=memory["ours"], theirs=least, unit="B",
            ratio=memory["ours"] / least, budget=1.0, at_most=True, note="the smaller of torchvision's two precisions",
        )
    )  # fmt: skip
    return rows


def _setting(batch: int, size: int) -> str:
    return f"{batch} x {size} px, 80 classes, ResNet-50"


@contextmanager
def host_waits() -> Iterator[list[str]]:
    """Collects the source lines of this project at which the host waits for the GPU."""
    found: list[str] = []
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
