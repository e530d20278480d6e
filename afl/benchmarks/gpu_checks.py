"""Checks of the GPU's kernels against independent computations on the same numbers.

A row gives the largest error divided by the allowed error; a kernel is correct if it is at most 1. ``small`` selects tiny sizes
for a rehearsal on a CPU.
"""

from __future__ import annotations

import os
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor

from afl.benchmarks.gpu_measure import kernel_seconds
from afl.benchmarks.harness import Row
from afl.benchmarks.loss import loss_of
from afl.losses import ClassificationTarget, ElementWeights, reference
from afl.losses.fused import SWITCH, uses_triton
from afl.losses.primitive import weighted_loss
from detectors.anchors import match_anchors
from detectors.heatmap import gaussian_lists
from detectors.rows import rows_at

# Relative errors of a loss, and of a gradient as a whole, by type of the logits.
LOSS_ERROR = 2e-5
GRADIENT_ERROR = {torch.float32: 2e-5, torch.bfloat16: 5e-3, torch.float16: 2e-3}
WITH_PASSES = ("ghm", "ap_loss", "dr_loss", "ohem", "ssd", "efl", "afl_balanced")


def fused_losses(device: torch.device, small: bool) -> list[Row]:
    """FL and AFL on sparse targets of every kind against the dense reference in float64; every run twice."""
    large = (33, 40) if small else (1003, 1203)
    sizes = [(1, 1), (13, 7), large] if small else [(1, 1), (13, 7), (4097, 3), large]
    everything = {"ignored": True, "verified": True, "scaled": True, "weighted": True}
    cases = [(size, torch.float32, {"gate": "scalar"}) for size in sizes]
    cases += [
        (large, torch.float32, {"gamma": 0.0, "alpha": -1.0}),
        (large, torch.float32, {"gamma": 1.5, "gate": "class", **everything}),
        (large, torch.float32, {"soft": True, "gate": "scalar", **everything}),
        (large, torch.bfloat16, {"gate": "scalar", **everything}),
        (large, torch.bfloat16, {}),
        (large, torch.float16, {"gate": "scalar", "scaled": True}),
    ]
    worst: dict[torch.dtype, tuple[float, str]] = {}
    for seed, (size, dtype, options) in enumerate(cases):
        for extreme in (False, True):
            error = _error_of_fused(seed, size, dtype, extreme, device, options)
            what = f"{size[0]} x {size[1]} {options}{' to +-80' if extreme else ''}"
            worst[dtype] = max(worst.get(dtype, (-1.0, "")), (error, what))
    return [
        _verdict(f"fused losses, {str(dtype)[6:]}", error, f"float64 reference; worst: {what}")
        for dtype, (error, what) in worst.items()
    ]


def _error_of_fused(
    seed: int, size: tuple[int, int], dtype: torch.dtype, extreme: bool, device: torch.device, options: dict
) -> float:
    target, weights = _random_case(seed, *size, **options)
    target, weights = _moved(target, device), _moved(weights, device)
    z = 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed)) - 2
    if extreme:
        z = torch.linspace(-80, 80, z.numel()).view(size)
    z = z.to(device, dtype).requires_grad_()
    if not uses_triton(z):
        raise RuntimeError("the kernels are not in use")
    one, outcomes = torch.tensor(7.0, device=device), []
    for _ in range(2):
        # NaN in the memory that the allocator hands out next: every gradient must be written.
        torch.full(size, torch.nan, dtype=dtype, device=device)
        loss = weighted_loss(z, target, weights, one)
        outcomes.append((loss.detach(), torch.autograd.grad(loss, z)[0].clone()))
    if not all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True)):
        return float("inf")
    double = z.detach().double().requires_grad_()
    exact = reference.weighted_loss(double, target, _moved(weights, device, torch.float64), one.double())
    (slope,) = torch.autograd.grad(exact, double)
    return _error(*outcomes[0], exact.detach(), slope)


def own_passes(device: torch.device, small: bool) -> list[Row]:
    """Losses with passes of their own against torch's operations in float64 on the CPU."""
    classes, locations = (5, 60) if small else (80, 20_000)
    target, _ = _random_case(3, locations, classes, ignored=True, positives=12 if small else 300)
    z = 2 * torch.randn(locations, classes, generator=torch.Generator().manual_seed(3)) - 3
    rows = []
    for name in WITH_PASSES[:3] if small else WITH_PASSES:
        found = []
        for place, dtype in ((device, torch.float32), (torch.device("cpu"), torch.float64)):
            loss = loss_of(name, classes, place)
            own = z.to(place, dtype).requires_grad_()
            value = loss(own, _moved(target, place), torch.tensor(50.0, device=place))
            found += [value.detach().cpu(), torch.autograd.grad(value, own)[0].cpu()]
        rows.append(_verdict(f"passes of {name}, float32", _error(*found), "torch in float64 on the CPU"))
    return rows


def matching(device: torch.device, small: bool) -> list[Row]:
    """RetinaNet's assignment by its kernels against torch's operations: equal to the bit, and how much faster."""
    batch, objects, side = (2, 9, 8) if small else (16, 300, 64)
    random = torch.Generator().manual_seed(0)
    corner = torch.rand(batch, objects, 2, generator=random) * side * 8
    boxes = torch.cat([corner, corner + 8 + 80 * torch.rand(batch, objects, 2, generator=random)], -1)
    grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(-1, 2)
    middle = grid.repeat_interleave(9, 0) * 8.0 + 4
    half = (8 * 2 ** (torch.arange(9) / 3)).repeat(side * side).unsqueeze(1)
    anchors = torch.cat([middle - half, middle + half], 1).to(device)
    boxes, valid = boxes.to(device), (torch.rand(batch, objects, generator=random) < 0.9).to(device)
    ours, (match, overlap) = _timed_with("on", lambda: match_anchors(anchors, boxes, valid))
    theirs, (expected, iou) = _timed_with("off", lambda: match_anchors(anchors, boxes, valid))
    error = 0.0 if torch.equal(match, expected) and torch.equal(overlap, iou) else float("inf")
    what = f"anchor matching, {batch} x {objects} objects x {len(anchors):,} anchors"
    return [
        _verdict(what, error, "torch, to the bit"),
        Row.speed_up(f"{what}, kernels", ours, theirs, note="torch's operations"),
    ]


def heat_maps(device: torch.device, small: bool) -> list[Row]:
    """Gaussian targets by their kernel against torch's operations: the same elements, and how much faster."""
    maps, batch, objects, classes, side = (2, 2, 7, 3, 16) if small else (2, 16, 100, 80, 128)
    random = torch.Generator().manual_seed(0)
    cells = torch.randint(side, (maps, batch, objects, 2), generator=random).to(device)
    radius = torch.randint(1, 4 if small else 12, (batch, objects), generator=random).float().to(device)
    labels = torch.randint(classes, (batch, objects), generator=random).to(device)
    present = (torch.rand(batch, objects, generator=random) < 0.9).to(device)
    scene = (cells, radius, labels, present)
    from detectors import triton_heatmap  # needs Triton

    ours, found = _timed_with("on", lambda: triton_heatmap.gaussian_lists(*scene, 12, classes, side, side))
    theirs, expected = _timed_with("off", lambda: gaussian_lists(*scene, classes, side, side))
    error = 0.0
    for (positive, index, scale), (peaks, slopes, scales) in zip(found, expected, strict=True):
        order = index[index >= 0].sort()
        if not torch.equal(positive[positive >= 0].sort().values, peaks) or not torch.equal(order[0], slopes):
            error = float("inf")
        elif len(scales):
            apart = (scale[index >= 0][order[1]] - scales).abs() / scales.clamp(min=1e-6)
            error = max(error, float(apart.max()) / 1e-4)
    what = f"Gaussian targets, {maps} maps x {batch} x {objects} objects"
    return [
        _verdict(what, error, "torch's operations"),
        Row.speed_up(f"{what}, kernels", ours, theirs, note="torch's operations"),
    ]


def rows_of_positives(device: torch.device, small: bool) -> list[Row]:
    """The box branch's rows at a padded list of positions, most of it padding, against plain indexing."""
    count, entries = (500, 400) if small else (785_664, 785_664)
    values = torch.randn(count, 4, device=device, dtype=torch.bfloat16).requires_grad_()
    position = torch.full((entries,), -1, device=device)
    position[:200] = torch.randperm(count, device=device)[:200]
    upstream = torch.randn(entries, 4, device=device)

    def ours() -> Tensor:
        return torch.autograd.grad(rows_at(values, position, distinct=True), values, upstream)[0]

    def theirs() -> Tensor:
        at, real = position.clamp(min=0), (position >= 0).unsqueeze(1)
        return torch.autograd.grad(values[at].float(), values, upstream * real)[0]

    exact = torch.zeros(count, 4, device=device).index_add_(0, position[:200], upstream[:200])
    error = float((ours().float() - exact).norm() / exact.norm()) / GRADIENT_ERROR[torch.bfloat16]
    mine, plain = kernel_seconds([ours]), kernel_seconds([theirs], rounds=1)
    what = f"rows at {entries:,} padded positions, backward"
    return [
        _verdict(what, error, "float32 sums"),
        Row.speed_up(f"{what}, kernels", mine, plain, note="plain indexing"),
    ]


def huge_map(device: torch.device, small: bool) -> list[Row]:
    """A bfloat16 map of more than 2^31 elements against torch's formulas, piece by piece; positives on both sides of 2^31."""
    classes = 1203
    rows = 50 if small else 2**31 // classes + 2_000
    z = torch.empty(rows, classes, dtype=torch.bfloat16, device=device)
    step = max(1, rows // 16)
    for first in range(0, rows, step):
        z[first : first + step].normal_()
    z.requires_grad_()
    elements = rows * classes
    positive = torch.tensor([5, elements // 2, elements - 1, elements - 7 * classes], device=device)
    target = ClassificationTarget(
        classes, torch.zeros(rows, dtype=torch.int64, device=device), 1, positive=positive
    )
    loss = weighted_loss(z, target, ElementWeights(alpha=0.25, gamma=2.0), torch.ones((), device=device))
    (gradient,) = torch.autograd.grad(loss, z)
    expected, worst = 0.0, 0.0
    for first in range(0, rows, step):
        x = z.detach()[first : first + step].float()
        y = torch.zeros_like(x)
        begin, end = first * classes, first * classes + x.numel()
        y.view(-1)[positive[(positive >= begin) & (positive < end)] - begin] = 1.0
        x = torch.where(y > 0, -x, x)  # |p - y| and the cross-entropy are those of a negative at -x
        p, cross_entropy = x.sigmoid(), torch.nn.functional.softplus(x)
        balance = torch.where(y > 0, 0.25, 0.75)
        slope = balance * p * p * (p + 2 * (1 - p) * cross_entropy) * torch.where(y > 0, -1.0, 1.0)
        expected += float((balance * p * p * cross_entropy).sum(dtype=torch.float64))
        apart = (gradient[first : first + step].float() - slope).norm() / slope.norm()
        worst = max(worst, float(apart))
    error = max(abs(float(loss.detach()) - expected) / expected / 1e-4, worst / GRADIENT_ERROR[z.dtype])
    return [_verdict(f"FL on a map of {elements:,} elements, bfloat16", error, "torch's formulas in pieces")]


def _verdict(what: str, error: float, note: str) -> Row:
    return Row.limited(f"{what}: error / allowed", error, budget=1.0, note=note)


def _error(loss: Tensor, gradient: Tensor, exact: Tensor, slope: Tensor) -> float:
    """The larger of the errors of loss and gradient, each over what its type allows; infinite if not finite."""
    if not gradient.isfinite().all():
        return float("inf")
    of_loss = (loss.double() - exact).abs() / exact.abs().clamp(min=1e-30)
    of_gradient = (gradient.double() - slope).norm() / slope.norm().clamp(min=1e-30)
    return max(float(of_loss) / LOSS_ERROR, float(of_gradient) / GRADIENT_ERROR[gradient.dtype])


def _random_case(
    seed: int,
    rows: int,
    classes: int,
    *,
    ignored: bool = False,
    verified: bool = False,
    scaled: bool = False,
    soft: bool = False,
    weighted: bool = False,
    gate: str | None = None,
    gamma: float = 2.0,
    alpha: float = 0.25,
    positives: int = 9,
) -> tuple[ClassificationTarget, ElementWeights]:
    """A target with padded lists, of two images, and weights."""
    random = torch.Generator().manual_seed(seed)
    elements, images = rows * classes, min(2, rows)
    order = torch.randperm(elements, generator=random)
    skipped = torch.rand(rows, generator=random) < 0.3 if ignored else None
    allowed = order if skipped is None else order[~skipped[order // classes]]
    positive = allowed[: min(positives, elements // 2)]
    near = torch.cat([positive[: len(positive) // 2], order[-min(40, elements // 2) :]]).unique()
    positive, near = (torch.cat([index, torch.full((5,), -1)]) for index in (positive, near))

    def draw(*shape: int, high: float = 1.0) -> Tensor:
        return high * torch.rand(shape, generator=random)

    target = ClassificationTarget(
        num_classes=classes,
        image=torch.arange(rows) * images // rows,
        num_images=images,
        positive=positive,
        value=draw(len(positive)) if soft else None,
        ignored=skipped,
        negative_index=near if scaled else None,
        negative_scale=draw(len(near)) if scaled else None,
        verified=draw(images, classes) < 0.5 if verified else None,
    )
    weights = ElementWeights(
        alpha=alpha,
        gamma=gamma,
        positive=draw(len(positive), high=5.0),
        negative_class=draw(classes, high=2.0) if weighted else None,
        negative_location=draw(rows, high=2.0) if weighted else None,
        gate={None: None, "scalar": torch.tensor(0.8), "class": draw(classes)}[gate],
    )
    return target, weights


def _moved(thing, device: torch.device, dtype: torch.dtype | None = None):
    """A target or weights with all tensors on a device, in ``dtype`` if one is given."""
    tensors = {name: value for name, value in vars(thing).items() if isinstance(value, Tensor)}
    return replace(thing, **{name: value.to(device, dtype) for name, value in tensors.items()})


def _timed_with(switch: str, work):
    """Seconds of the kernels, and what ``work`` returns, with Triton's kernels on or off."""
    with patch.dict(os.environ, {SWITCH: switch}):
        found = work()
        return kernel_seconds([work]), found
