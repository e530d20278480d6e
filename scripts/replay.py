"""Run the batch that stopped a run through its detector again.

    python -m scripts.replay file=outputs/NAME/non_finite_step120.pt
    python -m scripts.replay file=... trainer.precision=fp32

Options:
    file=FILE    the batch, which a run saves when its loss or its gradient is not finite

Other arguments change the run's config for this pass, for example:
    trainer.precision=fp32    arithmetic of the network: bf16 or fp32
    loss.gamma=1.5            a value of the loss
    dataset.root=FOLDER       the current folder of the data set

The detector is built from the run's config, and its weights are those in the file. The command prints which outputs, terms of the
loss and gradients are finite.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from afl.config import read_config
from scripts.entry import asks_for_help, own_options, printable, quiet_libraries, run_command

if TYPE_CHECKING:
    from afl.training.replay import Replay


def main(arguments: list[str]) -> None:
    """Replay ``file=...`` and print which tensors are finite."""
    if asks_for_help(arguments, __doc__):
        return
    options, overrides = own_options(arguments, {"file": None})
    if not options["file"]:
        raise ValueError("which file? python -m scripts.replay file=outputs/NAME/non_finite_stepN.pt")
    path = Path(options["file"])
    if not path.is_file():
        raise ValueError(f"file={path}: there is no such file")
    read_config(path.parent, overrides)  # mistakes in the arguments end the command before it loads torch

    from afl.training.build import PRECISIONS
    from afl.training.load import build_run
    from afl.training.replay import replay

    quiet_libraries()
    config, _, detector = build_run(path.parent, overrides)
    show(replay(detector, path, PRECISIONS[config.trainer.precision]), str(path))


def show(found: Replay, title: str) -> None:
    """Print the step, its images, and one line for each tensor. Names are not parsed as markup."""
    import torch
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=150)
    console.print(f"step {found.step}, images {found.image_ids}", highlight=False, markup=False)
    table = Table("kind", "name", "value", "not finite", title=Text(printable(title)), title_justify="left")
    for kind, tensors in (("output", found.outputs), ("term", found.losses), ("gradient", found.gradients)):
        for name, tensor in tensors.items():
            bad = int((~torch.isfinite(tensor)).sum())
            if kind == "gradient" and not bad:
                continue
            value = f"{float(tensor):g}" if tensor.ndim == 0 else f"largest {float(tensor.abs().max()):g}"
            table.add_row(kind, Text(printable(name)), value, f"{bad} of {tensor.numel()}" if bad else "")
    console.print(table)


if __name__ == "__main__":
    run_command(main)
