"""Train and evaluate one cell, or with ``-m`` many of them.

    python -m scripts.train detector=fcos loss=afl dataset=shapes seed=0
    python -m scripts.train -m detector=centernet,retinanet loss=fl,afl seed=0,1,2
    torchrun --nproc-per-node 8 -m scripts.train detector=retinanet dataset=coco

The same command again resumes an unfinished run and returns at once on a finished one.  SIGTERM, SIGUSR1 and SIGUSR2 save a
checkpoint and end the command with exit code 75; Ctrl-C does so with 130, and at once when it is pressed again.
"""

from __future__ import annotations

import sys

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from afl.training import run_cell
from afl.training.checkpoint import CheckpointError
from afl.training.distributed import ProcessLost, leave_world
from afl.training.guard import NonFiniteLoss
from afl.training.interruption import Interruption
from scripts.entry import quiet_libraries, run_hydra

STOPPED = 130  # what a shell makes of Ctrl-C


class CellFailed(CompactHydraException):
    """A cell of a sweep failed, for a reason that has been said; Hydra ends the sweep with it, in one line too."""


def main(config: DictConfig) -> None:
    """Run the cell that ``config`` describes; what goes wrong is said in one line, and in full in its record."""
    quiet_libraries()
    try:
        with Interruption() as interruption:
            run_cell(config, interruption=interruption)
    except (ValueError, OSError, CheckpointError, NonFiniteLoss, ProcessLost) as error:
        cell = config.cell
        message = f"{cell.dataset}-{cell.detector}-{cell.loss}-s{config.seed} failed: {error}"
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            print(message, flush=True)
            raise CellFailed(message) from None  # the sweep goes on and ends with an error
        sys.exit(message)
    leave_world()


if __name__ == "__main__":
    try:
        run_hydra(main)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(STOPPED)
