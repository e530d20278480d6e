"""Look again at the batch that stopped a run.

    python -m scripts.replay file=outputs/NAME/non_finite_step120.pt
    python -m scripts.replay file=... trainer.precision=fp32

``file`` is what a run saves when its loss or its gradient is not finite. The detector is built from the run's config, the
saved weights are put in, and the saved batch goes through it: every output, every term of the loss and every gradient is
said to be finite or not. Everything else on the command line changes the config for this look.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from afl.training import ConfigError
from afl.training.build import PRECISIONS
from afl.training.checkpoint import CheckpointError
from afl.training.load import build_run
from afl.training.replay import Replay, replay
from datasets import DataError
from scripts.entry import quiet_libraries


def main(arguments: list[str]) -> None:
    """Replay ``file=...`` and print what is finite and what is not."""
    quiet_libraries()
    given = OmegaConf.from_dotlist([a.lstrip("+") for a in arguments])
    if "file" not in given:
        sys.exit("which file? python -m scripts.replay file=outputs/NAME/non_finite_stepN.pt")
    path = Path(given.pop("file"))
    config, _, detector = build_run(path.parent, given)
    show(replay(detector, path, PRECISIONS[config.trainer.precision]), str(path))


def show(found: Replay, title: str) -> None:
    """Print the step, its images, and one line for each tensor."""
    console = Console() if sys.stdout.isatty() else Console(width=150)
    console.print(f"step {found.step}, images {found.image_ids}", highlight=False)
    table = Table("what", "name", "value", "not finite", title=title, title_justify="left")
    for what, tensors in (("output", found.outputs), ("term", found.losses), ("gradient", found.gradients)):
        for name, tensor in tensors.items():
            bad = int((~torch.isfinite(tensor)).sum())
            if what == "gradient" and not bad:
                continue
            value = f"{float(tensor):g}" if tensor.ndim == 0 else f"largest {float(tensor.abs().max()):g}"
            table.add_row(what, name, value, f"{bad} of {tensor.numel()}" if bad else "")
    console.print(table)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (CheckpointError, ConfigError, DataError, ValueError) as problem:
        sys.exit(str(problem))
