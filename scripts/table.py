"""Tables: train the missing runs of a table, rebuild it from its records, or plan it.

    python -m scripts.table table=shapes action=run seeds=[0,1,2] jobs=2
    python -m scripts.table table=shapes
    python -m scripts.table table=coco action=plan seeds=[0,1,2]
    python -m scripts.table table=shapes source=wandb entity=ME project=afl

``plan`` prints the runs, hours and disk space of a table. ``run`` trains the runs of the table with ``scripts.train``. It skips finished
runs, lists failed ones, and continues with the others. It writes the table to ``outputs/tables/NAME`` and compares it with the
committed one. ``build`` prints the committed table from its records. With ``publish=true`` these two also write ``results/NAME``: the
table, and the records of ``run``.

On a cluster every run is a separate job (this process must have access to the folder of the records):

    python -m scripts.table table=coco action=run launch=[hydra/launcher=slurm,hydra.launcher.gpus_per_node=1]
"""

from __future__ import annotations

import gc
import sys

from omegaconf import DictConfig

from scripts.entry import quiet_libraries, run_hydra


def main(config: DictConfig) -> None:
    """Do what ``config.action`` asks for. Errors in the data or the configuration give one line."""
    # Importing the rest of the project takes seconds, so it happens after the arguments are checked. Garbage collection is off,
    # because a table creates few reference cycles, and searching for them takes a sixth of the time of a plan.
    gc.disable()
    from afl.reporting import ServerError
    from afl.tables.actions import act
    from datasets.errors import explained

    quiet_libraries()
    try:
        act(config)
    except (ValueError, OSError, ServerError) as problem:
        sys.exit(explained(problem))


if __name__ == "__main__":
    run_hydra(main, "tables")
