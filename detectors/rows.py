"""Rows of a matrix at a list of positions, with a fast and exact gradient.

The backward pass of plain indexing sums rows in the type of the matrix, so in bfloat16 it rounds every partial sum. On a GPU it also
processes entries with the same position serially, and in a padded list most entries have the same position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Number of rows after the matrix that receive the gradients of padding; with many rows, few entries share a row.
_SPARE_ROWS = 1024


def rows_at(values: Tensor, position: Tensor, *, distinct: bool) -> Tensor:
    """Rows (P, ...) of ``values`` (N, ...) in float32 (float64 for float64 values).

    Gradients are summed in the returned type and then rounded once to the type of ``values``.

    Args:
        position: (P,) int64. Negative entries are padding: they give row 0, and their gradient is dropped.
        distinct: whether all positions except padding are distinct, so that no gradients need to be summed.
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
        # Distinct rows are written directly in the final type.
        dtype = ctx.dtype if ctx.distinct else gradient.dtype
        result = gradient.new_zeros(count + _SPARE_ROWS, *rest, dtype=dtype)
        result.index_put_(
            (torch.where(position >= 0, position, spare),), gradient.to(dtype), accumulate=not ctx.distinct
        )
        return result[:count].to(ctx.dtype), None, None
