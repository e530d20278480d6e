"""What the fused operations share."""

from __future__ import annotations

import contextlib
import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

# On an accelerator a block only bounds the memory beside logits and gradient.
_BLOCK_ON_ACCELERATOR = 1 << 24
# The switch of the kernels: auto | on | off.
SWITCH = "AFL_TRITON"


def uses_triton(tensor: Tensor) -> bool:
    """Whether a loss on these logits is computed by Triton's kernels, else by torch's operations in blocks.

    The environment variable ``AFL_TRITON`` decides: ``auto`` (or unset) takes the kernels for tensors on a GPU
    where triton is installed, ``off`` never, ``on`` always, on a CPU through Triton's interpreter, which
    ``TRITON_INTERPRET=1`` switches on. Both give the same numbers; float64 never goes through the kernels, nor does what
    lies on another device than a CPU or a GPU.

    Raises:
        RuntimeError: ``on`` cannot be had, or the variable has another value.
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
    """A context in which operations keep their types, on devices that know of autocast at all."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def block_rows(columns: int, device: torch.device, elements_on_cpu: int) -> int:
    """Rows of one block; on a CPU every thread gets ``elements_on_cpu``, whose buffers fit its cache."""
    elements = elements_on_cpu * torch.get_num_threads() if device.type == "cpu" else _BLOCK_ON_ACCELERATOR
    return max(1, elements // max(columns, 1))


def times_upstream(ctx: Any, upstream: Tensor) -> Tensor:
    """The saved gradient times the one that comes from above (a scalar, or of the same shape).

    The usual scalar 1 costs nothing: on a CPU looking at it is free. On a GPU a look would stop the queue, so
    there a kernel looks, and scales the buffer in place where it has to. A second backward through the same
    graph leaves the buffer alone, because the first one has handed it out, and gets a new one.
    """
    (gradient,) = ctx.saved_tensors
    applied = getattr(ctx, "applied", None)
    if applied is not None:
        return gradient * (upstream / applied).to(gradient.dtype)
    scalar = upstream.ndim == 0
    if scalar and upstream.device.type == "cpu" and upstream.item() == 1.0:
        return gradient
    if not scalar or not uses_triton(gradient):
        return gradient * upstream.to(gradient.dtype)
    ctx.applied = upstream
    import_module("afl.losses.triton_launch").scale_gradient(gradient, upstream)
    return gradient
