"""Classification losses, compared with torchvision's focal loss, with each other, and over sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from afl.benchmarks.harness import Row, bytes_saved, take_turns
from afl.losses import ClassificationTarget
from afl.training.build import instantiate
from afl.training.compose import compose_cell
from detectors.contract import ClassCounts

SIZES = ((20_000, 80, 5.0), (20_000, 1203, 10.0))
AFL_BUDGET, LINEAR_BUDGET = 1.1, 1.1
POSITIVES = 200


def measure(quick: bool) -> list[Row]:
    """Rows for the CPU."""
    device = torch.device("cpu")
    sizes = [(500, c, budget) for _, c, budget in SIZES] if quick else SIZES
    repetitions = 3 if quick else 21
    rows = []
    # Logits are bfloat16 in training; both sides use the same type.
    cases = [(dtype, *size) for dtype in (torch.float32, torch.bfloat16) for size in sizes]
    for dtype, locations, classes, budget in cases:
        logits, target, dense = case(locations, classes, device, dtype)
        size = f"{locations:,} x {classes:,}, {device.type}"
        if dtype == torch.bfloat16:
            size += ", bf16"
        losses = {name: loss_of(name, classes, device) for name in ("fl", "afl", "afl_balanced")}
        sides = {name: step(loss, logits, target) for name, loss in losses.items()}
        plain = partial(sigmoid_focal_loss, logits, dense, reduction="sum")
        sides["torchvision"] = partial(lambda plain, z: _backward(plain(), z), plain, logits)
        # Without the call before it, a side would pay for the data that the side before it evicted from the cache.
        seconds = take_turns(sides, repetitions, warm=True)
        kept = bytes_saved(partial(losses["fl"], logits, target, torch.ones((), device=device)))
        theirs = bytes_saved(plain)
        rows += [
            Row.speed_up(
                f"FL forward + backward, {size}", seconds["fl"], seconds["torchvision"], budget=budget, ours_memory=kept,
                theirs_memory=theirs, note="torchvision sigmoid_focal_loss, sum; memory: saved for backward",
            ),
            Row.share(f"FL saved for backward / logits, {size}", kept, logits.nbytes, unit="B", budget=1.0),
            Row.share(
                f"AFL / FL, {size}", seconds["afl"], seconds["fl"], budget=AFL_BUDGET, note="same kernel without the gate"
            ),
            Row.share(
                f"AFL balanced / FL, {size}", seconds["afl_balanced"], seconds["fl"],
                note="a second pass for the balance of negatives",
            ),
        ]  # fmt: skip
    return [*rows, *_linear(device, quick)]


def _linear(device: torch.device, quick: bool) -> list[Row]:
    """Growth of the cost over a sixteenfold range of locations, and of classes."""
    base = 500 if quick else 5_000
    sizes = ((base, 80), (4 * base, 80), (16 * base, 80), (base, 320), (base, 1280))
    works = {}
    for locations, classes in sizes:
        logits, target, _ = case(locations, classes, device)
        works[locations, classes] = step(loss_of("fl", classes, device), logits, target)
    seconds = take_turns(works, 3 if quick else 9)
    each = [seconds[size] / (size[0] * size[1]) for size in sizes]
    return [
        Row(
            f"FL, cost ~ (locations x classes) to the power of, over {base:,} to {16 * base:,} x 80 and {base:,} x 80 to 1,280, "
            f"{device.type}",
            ours=max(each),
            theirs=min(each),
            ratio=max(growth(seconds[base, 80], seconds[far], 16) for far in (sizes[2], sizes[4])),
            budget=LINEAR_BUDGET,
            at_most=True,
            note="1 is linear; the columns are the dearest and the cheapest element",
        )
    ]


def growth(small: float, large: float, times: float) -> float:
    """The exponent of a cost that increases from ``small`` to ``large`` when the size increases by a factor of ``times``."""
    return math.log(large / small) / math.log(times)


def case(
    locations: int, classes: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ClassificationTarget, Tensor]:
    """Logits of an untrained head, a sparse target with 200 positives, and the same target in dense form."""
    random = torch.Generator(device).manual_seed(0)
    logits = torch.randn(locations, classes, generator=random, device=device) - 4.6
    element = torch.randperm(locations, generator=random, device=device)[:POSITIVES] * classes
    element = element + torch.randint(classes, element.shape, generator=random, device=device)
    dense = torch.zeros(locations, classes, device=device)
    dense.view(-1)[element] = 1.0
    target = ClassificationTarget(
        num_classes=classes,
        image=torch.zeros(locations, dtype=torch.int64, device=device),
        num_images=1,
        positive=element,
        ignored=torch.zeros(locations, dtype=torch.bool, device=device),
    )
    return logits.to(dtype).requires_grad_(), target, dense.to(dtype)


def loss_of(name: str, classes: int, device: torch.device) -> torch.nn.Module:
    """A loss of ``conf/loss`` for a map with this number of classes and decreasing counts."""
    config = compose_cell(detector="retinanet", loss=name, overrides=["dataset=shapes_coco"]).loss
    counts = torch.logspace(4, 0, classes)
    info = ClassCounts(counts, counts).map_info("map", prior=0.01, alpha=0.25, dense_positives=True)
    return instantiate(config)(info).to(device)


def step(loss: torch.nn.Module, logits: Tensor, target: ClassificationTarget) -> Callable[[], None]:
    """Forward and backward, the sum over elements."""
    one = torch.ones((), device=logits.device)
    return lambda: _backward(loss(logits, target, one), logits)


def _backward(loss: Tensor, logits: Tensor) -> None:
    logits.grad = None
    loss.backward()
