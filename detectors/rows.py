"""Rows of a matrix at a list of positions, with a gradient that is quick and exact.

The backward pass of plain indexing adds up rows in the type of the matrix, so in bfloat16 it rounds every partial sum. On
a GPU it also processes the entries of one position serially, and a padded list consists mostly of one position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rows behind the matrix that receive the gradients of padding. Many, so that few entries meet in one row.
_SPARE_ROWS = 1024


def rows_at(values: Tensor, position: Tensor, *, distinct: bool) -> Tensor:
    """Rows (P, ...) of ``values`` (N, ...) in float32 (float64 for float64 values).

    Gradients are summed in the returned type and then rounded once to the type of ``values``.

    Args:
        position: (P,) int64. Negative entries are padding: they give row 0, and their gradient is dropped.
        distinct: whether no position occurs twice, apart from padding; then nothing needs to be summed.
    """
    return _Rows.apply(values, position, distinct)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, position: Tensor, distinct: bool) -> Tensor:
        ctx.save_for_backward(position)
        ctx.shape, ctx.dtype, ctx.distinct = values.shape, values.dtype, distinct
        rows = values.index_select(0, position.clamp(min=0))
        return rows if rows.dtype == torch.float64 else rows.float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (position,) = ctx.saved_tensors
        count, *rest = ctx.shape
        spare = count + torch.arange(len(position), device=position.device) % _SPARE_ROWS
        # Distinct rows can be written in the final type at once.
        dtype = ctx.dtype if ctx.distinct else gradient.dtype
        result = gradient.new_zeros(count + _SPARE_ROWS, *rest, dtype=dtype)
        result.index_put_(
            (torch.where(position >= 0, position, spare),), gradient.to(dtype), accumulate=not ctx.distinct
        )
        return result[:count].to(ctx.dtype), None, None
