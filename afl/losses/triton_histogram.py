"""The histogram of the plain negatives' gradients on a GPU: the logits are read once and no map is written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from afl.losses.target import ClassificationTarget
from afl.losses.triton_element import GAMMA_ZERO, bin_of, hard_terms
from afl.losses.triton_kernel import bytes_of, mark
from afl.losses.triton_launch import WARPS, block_size, on_device_of
from afl.losses.triton_ranking import plain_block

# Programs that share a map.
_PROGRAMS = 2048


def sizes_of_negatives(logits: Tensor, target: ClassificationTarget, bins: int) -> Tensor:
    """How many plain negatives have a g = sigmoid(z) in each of equal bins of [0, 1]: (bins,) float64."""
    elements, block = logits.numel(), block_size(logits.numel())
    if not elements:
        return torch.zeros(bins, dtype=torch.float64, device=logits.device)
    logits = logits.detach().contiguous()
    # A power of two, because the kernel is compiled for every number of steps.
    steps = triton.next_power_of_2(triton.cdiv(elements, block * _PROGRAMS))
    programs = triton.cdiv(elements, block * steps)
    # One bin more, for everything else.
    width = triton.next_power_of_2(bins + 1)
    partial = torch.empty(programs, width, dtype=torch.int32, device=logits.device)
    with on_device_of(logits):
        marked, _ = mark(target, elements, logits.device)
        _histogram[(programs,)](
            logits,
            partial,
            marked=marked,
            verified=bytes_of(target.verified),
            image=None if target.verified is None else target.image.contiguous(),
            shift=None if target.shift is None else target.shift.float().contiguous(),
            elements=elements,
            C=target.num_classes,
            BINS=bins,
            WIDTH=width,
            STEPS=steps,
            BLOCK=block,
            num_warps=WARPS,
        )
    return partial.sum(0, dtype=torch.int64)[:bins].double()


@triton.jit
def _histogram(
    logits,
    partial,
    marked,
    verified,
    image,
    shift,
    elements,
    C: tl.constexpr,
    BINS: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    total = tl.zeros((WIDTH,), tl.int32)
    for step in range(STEPS):
        start = (tl.program_id(0).to(tl.int64) * STEPS + step) * BLOCK
        z, counted, inside = plain_block(logits, marked, verified, image, start, elements, C, BLOCK)
        if shift is not None:
            place = (start - (start // C) * C).to(tl.int32) + inside
            z += tl.load(shift + place % C)
        g, _, _, _ = hard_terms(z, 0.0, GAMMA_ZERO)
        total += tl.histogram(tl.where(counted, bin_of(g, BINS), BINS), WIDTH)
    tl.store(partial + tl.program_id(0) * WIDTH + tl.arange(0, WIDTH), total)
