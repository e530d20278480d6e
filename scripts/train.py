"""Train and evaluate one run, or several runs with -m.

    python -m scripts.train detector=fcos loss=afl dataset=shapes seed=0
    python -m scripts.train -m detector=centernet,retinanet loss=fl,afl seed=0,1,2
    torchrun --nproc-per-node 8 -m scripts.train detector=retinanet dataset=coco

If you repeat a command, it resumes an unfinished run, and returns immediately if the run is finished. SIGTERM, SIGUSR1 and SIGUSR2
save a checkpoint and end the command with exit code 75. Ctrl-C does the same with exit code 130; a second Ctrl-C ends the
command immediately.

The most common settings:
    detector=fcos                   the detector
    loss=afl                        the classification loss
    dataset=shapes                  the data set; dataset=custom reads your own
    dataset.root=FOLDER             the folder of the data set
    backbone=resnet50               the backbone
    seed=0                          the seed of all random numbers
    trainer.max_duration=12epochs   length: steps, epochs or images
    trainer.batch_size=16           images per step
    trainer.device=auto             auto (CUDA if available), cpu or cuda
    paths.output=outputs            the folder of run directories
    logger=none                     do not log to W&B

Quote a value with special characters for the shell: 'dataset.root=/data/birds (1)'.
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from scripts.entry import quiet_libraries, run_hydra

STOPPED = 130  # the exit code of a shell's command after Ctrl-C


def main(config: DictConfig) -> None:
    """Train the run that ``config`` describes. A failure prints one line; the record has the details."""
    # Importing torch and the rest of the project takes seconds, so it happens after the arguments are checked.
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException
    from hydra.types import RunMode

    from afl.training import run_cell
    from afl.training.checkpoint import CheckpointError
    from afl.training.distributed import ProcessLost, leave_world
    from afl.training.guard import NonFiniteLoss
    from afl.training.interruption import Interruption
    from datasets.errors import explained

    quiet_libraries()
    try:
        with Interruption() as interruption:
            run_cell(config, interruption=interruption)
    except (ValueError, OSError, CheckpointError, NonFiniteLoss, ProcessLost) as error:
        cell = config.cell
        message = f"{cell.dataset}-{cell.detector}-{cell.loss}-s{config.seed} failed: {explained(error)}"
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            print(message, flush=True)
            # The other runs of the sweep continue. Hydra ends the sweep with this error, in one line.
            raise CompactHydraException(message) from None
        sys.exit(message)
    leave_world()


if __name__ == "__main__":
    try:
        run_hydra(main)
    except KeyboardInterrupt:
        print("stopped; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(STOPPED)
