"""The mean hardness of the positives on a GPU, in one kernel where torch needs twenty small ones."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from afl.losses.target import ClassificationTarget
from afl.losses.triton_element import GAMMA_ZERO, hard_terms
from afl.losses.triton_launch import on_device_of

_BLOCK = 1024


def hardness_of_positives(logits: Tensor, target: ClassificationTarget) -> Tensor:
    """Sum of g = |p - y| over the target's positives, and their number: (2,) float64."""
    count = target.positive.numel()
    if not count or not logits.numel():
        return torch.zeros(2, dtype=torch.float64, device=logits.device)
    partial = torch.empty(triton.cdiv(count, _BLOCK), 2, device=logits.device)
    with on_device_of(logits):
        _hardness[(len(partial),)](
            logits.detach().contiguous(),
            target.positive.contiguous(),
            None if target.value is None else target.value.contiguous(),
            None if target.shift is None else target.shift.float().contiguous(),
            None if target.positive_shift is None else target.positive_shift.float().contiguous(),
            partial,
            count,
            C=target.num_classes,
            BLOCK=_BLOCK,
        )
    return partial.sum(0, dtype=torch.float64)


@triton.jit(do_not_specialize=["count"])
def _hardness(
    logits,
    index,
    value,
    shift,
    positive_shift,
    partial,
    count,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    element = tl.load(index + entry, mask=entry < count, other=-1)
    valid = element >= 0
    element = tl.where(valid, element, 0)
    z = tl.load(logits + element, mask=valid, other=0.0).to(tl.float32)
    if shift is not None:
        z += tl.load(shift + element % C, mask=valid, other=0.0)
    if positive_shift is not None:
        z += tl.load(positive_shift + entry, mask=valid, other=0.0)
    p, q, _, _ = hard_terms(z, 0.0, GAMMA_ZERO)
    if value is None:
        g = q
    else:
        g = tl.abs(p - tl.load(value + entry, mask=valid, other=0.0).to(tl.float32))
    at = partial + tl.program_id(0) * 2
    tl.store(at, tl.sum(tl.where(valid, g, 0.0)))
    tl.store(at + 1, tl.sum(valid.to(tl.float32)))
