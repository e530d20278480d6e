"""Losses of the plain negatives at every location, on a GPU: the logits are read once and only (R,) values are written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from afl.losses.target import ClassificationTarget
from afl.losses.triton_element import hard_terms
from afl.losses.triton_kernel import mark, negative_weights
from afl.losses.triton_launch import block_size, interpreted, on_device_of
from afl.losses.weighting import ElementWeights

# Elements that a program reads at once, and the most of them in one row.
_TILE, _COLUMNS = 2048, 256


def losses_of_locations(
    logits: Tensor, target: ClassificationTarget, weights: ElementWeights
) -> tuple[Tensor, Tensor]:
    """Sum and maximum over classes of W alpha_t v, plain negatives only and without the gate: (R,) float32 each.

    Args:
        logits: (R, C); target, weights: of the map.
    """
    locations, classes = logits.shape
    sums, largest = torch.zeros(2, locations, device=logits.device)
    if not logits.numel():
        return sums, largest
    logits = logits.detach().contiguous()
    columns = min(triton.next_power_of_2(classes), _COLUMNS)
    rows = triton.next_power_of_2(max((block_size() if interpreted() else _TILE) // columns, 1))
    with on_device_of(logits):
        marked, _ = mark(target, logits.numel(), logits.device)
        _by_location[(triton.cdiv(locations, rows),)](
            logits,
            marked,
            sums,
            largest,
            locations=locations,
            C=classes,
            ROWS=rows,
            COLUMNS=columns,
            **negative_weights(target, weights),
        )
    return sums, largest


@triton.jit(do_not_specialize=["locations"])
def _by_location(
    logits,
    marked,
    sums,
    largest,
    gamma,
    gamma_of_class,
    verified,
    image,
    negative_class,
    negative_location,
    negative_element,
    balance,
    locations,
    C: tl.constexpr,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < locations
    total = tl.zeros((ROWS,), tl.float32)
    most = tl.zeros((ROWS,), tl.float32)
    for first in range(0, C, COLUMNS):
        label = first + tl.arange(0, COLUMNS)[None, :]
        element = row[:, None] * C + label
        valid = real[:, None] & (label < C)
        word = tl.load(marked + element // 32, mask=valid, other=-1)
        counted = ((word >> (element % 32).to(tl.int32)) & 1) == 0
        if verified is not None:
            own = tl.load(image + row, mask=real, other=0)[:, None]
            counted = counted & (tl.load(verified + own * C + label, mask=counted, other=0) != 0)
        z = tl.load(logits + element, mask=valid, other=0.0).to(tl.float32)
        if gamma_of_class is not None:
            gamma = tl.load(gamma_of_class + label, mask=label < C, other=1.0).to(tl.float32)
        _, _, factor, cross_entropy = hard_terms(z, gamma, KIND)
        if negative_class is not None:
            factor = factor * tl.load(negative_class + label, mask=label < C, other=0.0).to(tl.float32)
        if negative_location is not None:
            factor = factor * tl.load(negative_location + row, mask=real, other=0.0).to(tl.float32)[:, None]
        if negative_element is not None:
            factor = factor * tl.load(negative_element + element, mask=valid, other=0.0).to(tl.float32)
        loss = tl.where(counted, factor * cross_entropy * balance, 0.0)
        total += tl.sum(loss, 1)
        most = tl.maximum(most, tl.max(loss, 1))
    tl.store(sums + row, total, mask=real)
    tl.store(largest + row, most, mask=real)
