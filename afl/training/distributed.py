"""The processes that torchrun started, and the operations that differ between one process and several."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from afl.training.gpu import own_gpu

# How long a process waits for the others. Only the first process evaluates, which takes minutes.
PATIENCE = timedelta(hours=1)


class ProcessLost(RuntimeError):
    """Another process of the run or one of its image loaders has ended, so this process cannot continue."""


def reports_lost_process(error: BaseException) -> bool:
    """Whether the error reports a collective that failed because another process has ended."""
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and "gloo/transport" in str(error)
    )


def reports_lost_loader(error: BaseException) -> bool:
    """Whether the error is torch's report that a loader process has ended; any call can raise it."""
    return type(error) is RuntimeError and str(error).startswith("DataLoader worker (pid")


@dataclass(frozen=True)
class World:
    """This process and its place among all processes of the run.

    Attributes:
        rank, size: number of this process, and number of processes.
        device: where this process computes.
        control: group over the CPU for everything that processes agree on except gradients; None for a single process.
    """

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0


def join_world(device: str) -> World:
    """Read torchrun's environment, choose the device, and start a process group if there are several processes.

    On a machine with several GPUs a run outside torchrun takes one that no other run uses.

    Args:
        device: ``auto`` (CUDA if available), or a torch device name.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if chosen.type == "cuda" and size == 1 and device in ("auto", "cuda"):
        chosen = torch.device("cuda", own_gpu())
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        return World(rank=rank, size=size, device=chosen)
    if not dist.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    # Gloo on every device: it notices the death of a process immediately, and it does not wait for the GPU.
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    return World(rank=rank, size=size, device=chosen, control=control)


def choose_device(device: str, local: int = 0) -> torch.device:
    """The device for ``auto`` (CUDA if available), ``cpu`` or ``cuda:N``; ``cuda`` without a number is the GPU ``local``.

    Raises:
        ValueError: the device is another one, or CUDA is not available.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device("cuda", local) if device == "cuda" else torch.device(device)
    except RuntimeError as error:
        raise ValueError(_unknown_device(device)) from error
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(_unknown_device(device))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device}, but torch sees no CUDA device; use cpu or auto")
    return chosen


def _unknown_device(device: str) -> str:
    return f"device is {device!r}; it needs auto, cpu, cuda or a GPU such as cuda:1"


def leave_world() -> None:
    """End the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def barrier(world: World) -> None:
    """Wait until all processes have called this; a single process returns immediately."""
    if world.size > 1:
        dist.barrier(group=world.control)


def from_main(world: World, value: int) -> int:
    """The first process's ``value``, on all processes."""
    if world.size == 1:
        return value
    shared = torch.tensor(value)
    dist.broadcast(shared, 0, group=world.control)
    return int(shared)


def share_buffers(module: nn.Module, world: World) -> None:
    """Copy the buffers of the first process, which its checkpoint holds, to all processes."""
    if world.size > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
