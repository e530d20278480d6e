"""Losses and training steps on a GPU, in less than four minutes.

Parts that have never been measured come first, and each row is written when it is known, so a run that is interrupted still gives
the most useful figures. The time of a loss is the sum of its kernels in PyTorch's profiler, so that the ratio does not depend on
the speed of the host. Calls alternate between several buffers, which together are larger than the GPU's cache. The time of a
step is the wall time of a call. ``rehearse`` runs everything on a CPU with tiny sizes.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torchvision.ops import sigmoid_focal_loss

from afl.benchmarks import gpu_checks
from afl.benchmarks.gpu_measure import buffers, host_waits, kernel_seconds
from afl.benchmarks.harness import Row, peak_bytes, take_turns
from afl.benchmarks.loss import case, loss_of, step
from afl.benchmarks.training_step import our_step, their_step

SIZES = ((200_000, 1203), (20_000, 1203), (200_000, 80), (20_000, 80))
LOSSES = ("cbfl", "ghm", "ohem", "ssd", "libra", "eqlv2", "efl", "seesaw", "ap_loss", "dr_loss")
DETECTORS = ("cornernet", "extremenet", "retinanet", "fcos", "centernet", "objectbox")
AGAINST_TORCHVISION = ("retinanet", "fcos")
COPY_BUDGET = {torch.float32: 1.15, torch.bfloat16: 1.3}
AFL_BUDGET, OTHERS_BUDGET, TORCHVISION_BUDGET = 1.1, 5.0, 5.0
STEP_BUDGET, EQUAL_BUDGET = 2.0, 1.3
SECONDS = 200.0  # no part starts later


@dataclass(frozen=True)
class Setting:
    """Device and sizes of a run.

    Attributes:
        device: of all tensors.
        sizes: locations and classes of the losses' maps, the largest first.
        batch, side: images of a step and their side in pixels; repetitions: steps that are timed.
        backbone: of the steps; detectors: whose steps are timed; losses: names of the other losses.
        small: whether the checks use tiny sizes.
    """

    device: torch.device
    sizes: tuple[tuple[int, int], ...]
    batch: int
    side: int
    repetitions: int
    backbone: str = "resnet50"
    detectors: tuple[str, ...] = DETECTORS
    losses: tuple[str, ...] = LOSSES
    small: bool = False


def measure(quick: bool) -> Iterator[Row]:
    """All rows, one at a time; without a GPU, only the rows with a budget, without figures."""
    if not torch.cuda.is_available():
        yield from _without_figures()
    elif quick:
        yield from _run(Setting(torch.device("cuda"), SIZES[-1:], 2, 128, 2))
    else:
        yield from _run(Setting(torch.device("cuda"), SIZES, 16, 512, 6))


def rehearse(detectors: tuple[str, ...] = ("retinanet", "cornernet")) -> Iterator[Row]:
    """The same run on a CPU with tiny sizes; the environment must select Triton's interpreter."""
    # A gradient of a level with one cell is wrong in bfloat16 on a CPU: 128 pixels are enough for two.
    tiny = Setting(torch.device("cpu"), ((64, 5),), 1, 128, 1, "resnet18", detectors, ("ghm",), small=True)
    for row in _run(tiny, seconds=float("inf")):
        # Errors have no unit; times and memory mean nothing here.
        yield replace(row, budget=None) if row.unit else row


def _run(setting: Setting, seconds: float = SECONDS) -> Iterator[Row]:
    end = time.perf_counter() + seconds
    for what, work in _parts(setting).items():
        started = time.perf_counter()
        if started < end:
            yield from _attempt(what, work)
            print(f"{what}: {time.perf_counter() - started:.0f} s", flush=True)
        else:
            yield Row(what, note=f"no time left of {seconds:g} s")


def _parts(setting: Setting) -> dict[str, Callable[[], list[Row]]]:
    """The parts by name, in order: new kernels, then what has changed since the last measurement, then the rest."""
    device, small = setting.device, setting.small
    of_detector = {name: partial(_steps, setting, name) for name in setting.detectors}
    first = setting.sizes[0]
    parts: dict[str, Callable[[], list[Row]]] = {
        "check of the fused losses": partial(gpu_checks.fused_losses, device, small),
        "check of anchor matching": partial(gpu_checks.matching, device, small),
        "check of Gaussian targets": partial(gpu_checks.heat_maps, device, small),
        "check of other losses": partial(gpu_checks.own_passes, device, small),
    }
    for dtype in (torch.bfloat16, torch.float32):
        parts[f"losses, {_size(*first, dtype)}"] = partial(_losses, setting, *first, dtype)
    parts["other losses"] = partial(_other_losses, setting, *setting.sizes[min(2, len(setting.sizes) - 1)])
    parts |= {f"step, {name}": work for name, work in list(of_detector.items())[:4]}
    compiled = [name for name in AGAINST_TORCHVISION if name in setting.detectors and not small]
    parts |= {f"compiled step, {name}": partial(_compiled_steps, setting, name) for name in compiled}
    parts |= {f"step, {name}": work for name, work in list(of_detector.items())[4:]}
    parts["check of a map of more than 2^31 elements"] = partial(gpu_checks.huge_map, device, small)
    parts["check of rows at positives"] = partial(gpu_checks.rows_of_positives, device, small)
    for size in setting.sizes[1:]:
        for dtype in COPY_BUDGET:
            parts[f"losses, {_size(*size, dtype)}"] = partial(_losses, setting, *size, dtype)
    return parts


def _size(locations: int, classes: int, dtype: torch.dtype) -> str:
    return f"{locations:,} x {classes:,}, {'bf16' if dtype == torch.bfloat16 else 'fp32'}"


def _without_figures() -> list[Row]:
    note = "no GPU"
    return [  # fmt: skip
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
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        # A budget without a figure, so that the failure is counted.
        return [Row(what, budget=1.0, note=reason)]
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _losses(setting: Setting, locations: int, classes: int, dtype: torch.dtype) -> list[Row]:
    """FL and AFL compared with a copy of the logits, with each other, and with torchvision."""
    logits, target, dense = case(locations, classes, setting.device, dtype)
    maps = buffers(logits)
    place = torch.empty_like(logits)
    copy = kernel_seconds([lambda z=z: place.copy_(z.detach()) for z in maps])
    ours = {}
    for name in ("fl", "afl"):
        loss = loss_of(name, classes, setting.device)
        ours[name] = kernel_seconds([step(loss, z, target) for z in maps])

    def theirs() -> None:
        logits.grad = None
        sigmoid_focal_loss(logits, dense, reduction="sum").backward()

    torchvision = kernel_seconds([theirs])
    size = _size(locations, classes, dtype)
    # The time of a map that fits into the cache is limited by kernel launches, not by memory.
    largest = (locations, classes) == SIZES[0]
    return [
        Row.share(
            f"{name.upper()} / copy of the logits, {size}", ours[name], copy,
            budget=COPY_BUDGET[dtype] if largest else None, note="kernels alone",
        )
        for name in ours
    ] + [
        Row.share(f"AFL / FL, {size}", ours["afl"], ours["fl"], budget=AFL_BUDGET if largest else None, note="kernels alone"),
        Row.speed_up(
            f"FL, {size}", ours["fl"], torchvision,
            budget=TORCHVISION_BUDGET, note="torchvision sigmoid_focal_loss, sum; kernels alone",
        ),
    ]  # fmt: skip


def _other_losses(setting: Setting, locations: int, classes: int) -> list[Row]:
    """Every other loss compared with a copy of the logits in bf16."""
    logits, target, _ = case(locations, classes, setting.device, torch.bfloat16)
    maps = buffers(logits)
    place = torch.empty_like(logits)
    copy = kernel_seconds([lambda z=z: place.copy_(z.detach()) for z in maps])
    rows = []
    for name in setting.losses:
        what = f"{name} / copy of the logits, {locations:,} x {classes:,}, bf16"

        def one(name: str = name, what: str = what) -> list[Row]:
            loss = loss_of(name, classes, setting.device)
            seconds = kernel_seconds([step(loss, z, target) for z in maps[:2]], rounds=2)
            return [Row.share(what, seconds, copy, budget=OTHERS_BUDGET, note="kernels alone")]

        rows += _attempt(what, one)
    return rows


def _steps(setting: Setting, name: str) -> list[Row]:
    """Whole eager steps in bf16, compared with torchvision's for the detectors that it has."""
    batch, side = setting.batch, setting.side
    ours = our_step(name, batch, side, setting.device, torch.bfloat16, backbone=setting.backbone)
    rows = []
    if name in AGAINST_TORCHVISION:
        rows = _against_torchvision(setting, name, "eager", ours)
    else:
        seconds = take_turns({"ours": ours}, setting.repetitions)["ours"]
        kernels = kernel_seconds([ours], rounds=2)
        rows.append(
            Row(
                f"step, {name}, bf16 eager, {_images(setting)}", seconds, ours_memory=peak_bytes(ours),
                note=f"kernels alone {1e3 * kernels:.1f} ms",
            )
        )  # fmt: skip
    with host_waits() as waits:
        ours()
    where = "; ".join(f"{place} ({count} times)" for place, count in Counter(waits).items())
    return [*rows, Row.limited(f"host waits in a step, {name}", float(len(waits)), budget=0.0, note=where)]


def _compiled_steps(setting: Setting, name: str) -> list[Row]:
    """Whole steps with the compiled forward pass, compared with torchvision's."""
    started = time.perf_counter()
    ours = our_step(
        name, setting.batch, setting.side, setting.device, torch.bfloat16, compiled=True, backbone=setting.backbone
    )  # fmt: skip
    ours()
    torch.cuda.synchronize()
    built = time.perf_counter() - started
    first = Row(f"first step, {name}, bf16 compiled", ours=built, note="building the kernels")
    return [first, *_against_torchvision(setting, name, "compiled", ours)]


def _against_torchvision(setting: Setting, name: str, mode: str, ours: Callable[[], None]) -> list[Row]:
    sides = {"ours": ours}
    for precision, autocast in (("fp32", None), ("bf16", torch.bfloat16)):
        sides[precision] = their_step(
            name, setting.batch, setting.side, setting.device, autocast, backbone=setting.backbone
        )
    memory = {side: peak_bytes(work) for side, work in sides.items()}
    seconds = take_turns(sides, setting.repetitions)
    kernels = {side: 1e3 * kernel_seconds([work], rounds=2) for side, work in sides.items()}
    rows = [
        Row.speed_up(
            f"step, {name}, bf16 {mode} against {other}, {_images(setting)}", seconds["ours"], seconds[other],
            budget=budget, ours_memory=memory["ours"], theirs_memory=memory[other],
            note=f"torchvision; kernels alone {kernels['ours']:.1f} against {kernels[other]:.1f} ms",
        )
        for other, budget in (("fp32", STEP_BUDGET), ("bf16", EQUAL_BUDGET))
    ]  # fmt: skip
    of_memory = Row.share(
        f"memory of the step / theirs, {name}, bf16 {mode}", memory["ours"], min(memory["fp32"], memory["bf16"]), unit="B",
        budget=1.0, note="the smaller of torchvision's two precisions",
    )  # fmt: skip
    return [*rows, of_memory]


def _images(setting: Setting) -> str:
    return f"{setting.batch} x {setting.side} px, 80 classes, {setting.backbone}"
