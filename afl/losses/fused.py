"""Code that the fused operations share: choice of the kernels, blocks, and the backward pass."""

from __future__ import annotations

import contextlib
import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from afl.losses.gradient import computing_type

# On an accelerator a block only bounds the additional memory.
_BLOCK_ON_ACCELERATOR = 1 << 24
# The switch of the kernels: auto | on | off.
SWITCH = "AFL_TRITON"


def uses_triton(tensor: Tensor) -> bool:
    """Whether Triton's kernels compute a loss on these logits; otherwise torch's operations do, in blocks.

    The environment variable ``AFL_TRITON`` decides. ``auto`` (or unset) uses the kernels for tensors on a GPU if triton is
    installed, ``off`` never uses them, and ``on`` always uses them: on a CPU through Triton's interpreter, which
    ``TRITON_INTERPRET=1`` switches on. Both ways give the same numbers. The kernels do not support float64 and devices
    other than CPUs and GPUs.

    Raises:
        RuntimeError: if ``on`` is impossible here, or the variable has another value.
    """
    wanted = os.environ.get(SWITCH, "auto")
    if wanted not in ("auto", "on", "off"):
        raise RuntimeError(f"{SWITCH}={wanted}: it is auto, on or off")
    if wanted == "off" or tensor.dtype == torch.float64 or tensor.device.type not in ("cpu", "cuda"):
        return False
    if wanted == "auto":
        return tensor.is_cuda and _installed()
    if not _installed():
        raise RuntimeError(f"{SWITCH}=on needs the package triton; install it, or set {SWITCH}=auto")
    if not tensor.is_cuda and not import_module("afl.losses.triton_launch").interpreted():
        raise RuntimeError(f"{SWITCH}=on without a GPU needs TRITON_INTERPRET=1 in the environment as well")
    return True


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """A context without autocast; it costs nothing where autocast is off anyway."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def block_rows(columns: int, device: torch.device, elements_on_cpu: int) -> int:
    """Rows of one block; on a CPU a block has ``elements_on_cpu`` per thread, so that its buffers fit the cache."""
    elements = elements_on_cpu * torch.get_num_threads() if device.type == "cpu" else _BLOCK_ON_ACCELERATOR
    return max(1, elements // max(columns, 1))


def gradient_type(dtype: torch.dtype) -> torch.dtype:
    """Type in which the gradient of logits of ``dtype`` waits for backward.

    For float16 logits it is float32: before a GradScaler's factor is applied, most gradients of a mean are below float16's
    smallest number. bfloat16 has the range of float32 and keeps its own type.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def save_gradient(ctx: Any, gradient: Tensor, dtype: torch.dtype) -> None:
    """Keep a gradient that ``forward`` has computed; ``dtype`` is the logits' type."""
    ctx.save_for_backward(gradient)
    ctx.dtype = dtype


def gradient_of_logits(ctx: Any, upstream: Tensor) -> Tensor:
    """The saved gradient times the upstream one (a scalar, or of the same shape), in the logits' type.

    The product is taken in float32 (float64 for float64 logits) whatever the logits' type, then rounded once.
    """
    with torch.no_grad():
        gradient = _times_upstream(ctx, upstream)
    if torch.is_grad_enabled():
        return _WithoutSecondDerivative.apply(gradient.detach().requires_grad_())
    return gradient


def _times_upstream(ctx: Any, upstream: Tensor) -> Tensor:
    """The saved gradient times ``upstream``.

    The usual scalar 1 costs nothing on a CPU, where reading it is free. On a GPU reading it would stall the queue, so a
    kernel reads it and scales the buffer in place if necessary; or a copy of it, if the graph is kept for another backward.
    """
    (gradient,) = ctx.saved_tensors
    if upstream.ndim == 0 and uses_triton(gradient):
        if _graph_is_kept():
            gradient = gradient.clone()
        import_module("afl.losses.triton_launch").scale_gradient(gradient, upstream)
        return gradient.to(ctx.dtype)
    if upstream.ndim == 0 and upstream.device.type == "cpu":
        # A Python number is not rounded to the gradient's type before the product.
        factor = upstream.item()
        return (gradient if factor == 1.0 else gradient * factor).to(ctx.dtype)
    dtype = computing_type(ctx.dtype)
    return (gradient.to(dtype) * upstream.to(dtype)).to(ctx.dtype)


def _graph_is_kept() -> bool:
    """Whether the running backward keeps its graph (``retain_graph=True``), as far as torch says so."""
    known = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return known is None or known()


class _WithoutSecondDerivative(torch.autograd.Function):
    """Passes a gradient on; raises a clear error if it is differentiated."""

    @staticmethod
    def forward(ctx, gradient):
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, upstream):
        raise RuntimeError(
            "The losses of afl.losses have no second derivative: forward computes the gradient and keeps nothing to "
            "differentiate it with. For a gradient penalty take torchvision.ops.sigmoid_focal_loss."
        )
