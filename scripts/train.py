"""Train and evaluate one cell, or with ``-m`` many of them.

    python -m scripts.train detector=fcos loss=afl dataset=shapes seed=0
    python -m scripts.train -m detector=centernet,retinanet loss=fl,afl seed=0,1,2
    torchrun --nproc-per-node 8 -m scripts.train detector=retinanet dataset=coco

The same command again resumes an unfinished run and returns at once on a finished one.
"""

from __future__ import annotations

from omegaconf import DictConfig

from afl.training import run_cell
from scripts.entry import quiet_libraries, run_hydra


def main(config: DictConfig) -> None:
    """Run the cell that ``config`` describes."""
    quiet_libraries()
    run_cell(config)


if __name__ == "__main__":
    run_hydra(main)
