"""Tables: train the missing cells of one, rebuild it from its records, or say what it would take.

    python -m scripts.table table=shapes action=run seeds=[0,1,2] jobs=2
    python -m scripts.table table=shapes
    python -m scripts.table table=coco action=plan seeds=[0,1,2]
    python -m scripts.table table=shapes source=wandb entity=ME project=afl

``run`` sweeps ``scripts.train`` over the table's cells. It skips finished cells, lists failed ones and goes on with the rest. The
table goes to ``outputs/tables/NAME`` and is printed beside the committed one. ``build`` prints the committed table from its
records. Neither changes ``results/NAME``; ``publish=true`` does: it keeps the records of ``run`` there and writes the table.

On a cluster every cell is a job of its own (this process must see the disk with the records):

    python -m scripts.table table=coco action=run launch=[hydra/launcher=submitit_slurm,hydra.launcher.gpus_per_node=1]
"""

from __future__ import annotations

import gc
import sys

from omegaconf import DictConfig

from scripts.entry import quiet_libraries, run_hydra


def main(config: DictConfig) -> None:
    """Do what ``config.action`` says. A fault of the data or the configuration is one line."""
    # The rest of the project takes seconds: it is imported after the arguments have been checked. A table makes no cycles worth
    # collecting, and looking for them takes a sixth of the time of a plan.
    gc.disable()
    from afl.reporting import ServerError
    from afl.tables.actions import act

    quiet_libraries()
    try:
        act(config)
    except (ValueError, OSError, ServerError) as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    run_hydra(main, "tables")
