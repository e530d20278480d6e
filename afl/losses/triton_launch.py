"""Launch parameters of the fused kernels, and the kernel of the backward pass."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

# Threads of a program on a GPU: 8 warps of 32, 16 elements each.
WARPS = 8
# Elements of a program, a multiple of the 32 in a word of a bitmap. The interpreter's time per program
# hardly depends on its size.
_BLOCK, _BLOCK_INTERPRETED = 4096, 1 << 16
# Elements of a tile, and the most of them in one row.
_TILE, _COLUMNS = 2048, 256


def interpreted() -> bool:
    """Whether kernels were built for Triton's interpreter, which runs them on a CPU."""
    return not isinstance(_scale, triton.runtime.JITFunction)


def launch_options() -> dict[str, int]:
    """Options of a kernel whose programs are to keep a processor half full."""
    if interpreted() or torch.version.cuda is None:
        return {"num_warps": WARPS}
    return {"num_warps": WARPS, "maxnreg": 64}


def block_size(elements: int) -> int:
    """Elements of one program on a map of ``elements``, a multiple of 32."""
    if not interpreted():
        return _BLOCK
    return min(_BLOCK_INTERPRETED, max(triton.next_power_of_2(elements), 32))


def tile_of(locations: int, classes: int) -> tuple[int, int]:
    """Locations and classes that a program which sums over either reads at once, powers of two."""
    columns = min(triton.next_power_of_2(classes), _COLUMNS)
    rows = max((block_size(locations * columns) if interpreted() else _TILE) // columns, 1)
    return triton.next_power_of_2(rows), columns


def stored_type(dtype: torch.dtype) -> torch.dtype:
    """Type in which kernels write gradients of logits of ``dtype``: the interpreter truncates to bfloat16 where a GPU
    rounds, so torch rounds afterwards."""
    return torch.float32 if interpreted() else dtype


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, whatever device its tensors are on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def scale_gradient(gradient: Tensor, upstream: Tensor) -> None:
    """Multiply in place by a scalar on the device; a factor of 1 does not touch the memory."""
    if not gradient.numel():
        return
    # The buffer itself, except under the interpreter.
    written = gradient.to(stored_type(gradient.dtype))
    with on_device_of(written):
        block = block_size(written.numel())
        _scale[(triton.cdiv(written.numel(), block),)](
            written, upstream.contiguous(), written.numel(), BLOCK=block, num_warps=WARPS
        )
    if written is not gradient:
        # Hidden from autograd, like a kernel's write.
        gradient.data.copy_(written)


@triton.jit
def _scale(gradient, upstream, elements, BLOCK: tl.constexpr):
    factor = tl.load(upstream).to(tl.float32)
    if factor != 1.0:
        start = tl.program_id(0).to(tl.int64) * BLOCK
        inside = tl.arange(0, BLOCK)
        mask = inside < elements - start
        old = tl.load(gradient + start + inside, mask=mask, other=0.0).to(tl.float32)
        tl.store(gradient + start + inside, (old * factor).to(gradient.dtype.element_ty), mask=mask)
