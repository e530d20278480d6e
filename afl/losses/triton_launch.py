"""What launching the fused kernels takes, and the one kernel that backward needs."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

# Threads of a program on a GPU: 8 warps of 32, 16 elements each.
WARPS = 8
# Elements of a program, a multiple of the 32 in a word of a bitmap; the interpreter takes its time for a
# program, whatever its size.
_BLOCK, _BLOCK_INTERPRETED = 4096, 1 << 16


def interpreted() -> bool:
    """Whether kernels were built for Triton's interpreter, which runs them on a CPU."""
    return not isinstance(_scale, triton.runtime.JITFunction)


def block_size() -> int:
    """Elements of one program."""
    return _BLOCK_INTERPRETED if interpreted() else _BLOCK


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, whatever device its tensors are on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def scale_gradient(gradient: Tensor, upstream: Tensor) -> None:
    """Multiply by a scalar of the device in place; by the usual 1 without touching the memory."""
    if gradient.numel():
        with on_device_of(gradient):
            _scale[(triton.cdiv(gradient.numel(), block_size()),)](
                gradient, upstream.contiguous(), gradient.numel(), BLOCK=block_size(), num_warps=WARPS
            )


@triton.jit
def _scale(gradient, upstream, elements, BLOCK: tl.constexpr):
    factor = tl.load(upstream).to(tl.float32)
    if factor != 1.0:
        start = tl.program_id(0).to(tl.int64) * BLOCK
        inside = tl.arange(0, BLOCK)
        mask = inside < elements - start
        old = tl.load(gradient + start + inside, mask=mask, other=0.0).to(tl.float32)
        tl.store(gradient + start + inside, (old * factor).to(gradient.dtype.element_ty), mask=mask)
