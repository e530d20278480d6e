"""The GPU of a process on a machine with several of them, so that runs side by side do not share one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from datasets.files import NoLocks, try_lock


def own_gpu(folder: Path | None = None) -> int:
    """The first visible GPU that no other run uses.

    A process keeps its GPU until it ends, also for its later runs. If every GPU is in use, processes share them.

    Args:
        folder: of the lock files; None: one for each user in the system's temporary folder.
    """
    count = torch.cuda.device_count()
    if torch.cuda.is_initialized():
        return torch.cuda.current_device()
    if count < 2:
        return 0
    folder = folder or Path(tempfile.gettempdir()) / f"afl-gpus-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",")] if visible else [str(i) for i in range(count)]
    for i, name in enumerate(names[:count]):
        handle = os.open(folder / f"{name.replace('/', '_')}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if try_lock(handle):
                return i  # the handle stays open: the lock ends with the process
        except NoLocks:
            pass
        os.close(handle)
    return os.getpid() % count
