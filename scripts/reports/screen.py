"""The command that compares the gradients of losses on a trained detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from afl.config.choices import unknown_choice
from afl.reporting.markdown import markdown
from afl.training.build import build_detector
from afl.training.compose import compose_cell
from afl.training.load import load_run
from afl.training.screen import positive_gradients


def screen(
    *overrides: str, run: str = "", losses: Sequence[str] = ("fl", "cbfl", "afl"), batches: int = 20
) -> None:
    """The gradient of losses on each frequency group of a trained detector, before a training with them.

        python -m scripts.report screen run=outputs/NAME [losses=[fl,cbfl,afl]] [batches=20] [OVERRIDE ...]

    Prints the size of the gradient of positives by frequency group over that of the run's own loss, and the ratio of rare
    to frequent classes. The outputs are those of the run's last checkpoint on its training images. Running statistics, such as
    those of AFL's gate, first settle on the same batches, in at least 500 updates.

    Raises:
        ValueError: no run is named, a loss does not exist, or the batches have no positive.
    """
    if not run:
        raise ValueError("which run? python -m scripts.report screen run=outputs/NAME losses=[fl,afl]")
    if batches < 1:
        raise ValueError(f"batches is {batches}; at least 1 is needed")
    if problem := unknown_choice([f"loss={','.join(losses)}"]):
        raise ValueError(problem)
    loaded = load_run(Path(run), list(overrides))
    detectors = {}
    for name in losses:
        config = loaded.config.copy()
        config.loss = compose_cell(detector=config.cell.detector, loss=name, overrides=[]).loss
        detectors[name] = build_detector(config, loaded.data.classes)
    found = positive_gradients(loaded, {"": loaded.detector, **detectors}, batches=batches)
    own = found.pop("")
    groups = [group for group in "rcf" if own.get(group)]
    if not groups:
        raise ValueError(f"the {batches} batches have no positive; ask for more: batches={10 * batches}")
    rows = []
    for name, sums in found.items():
        ratio = {group: sums[group] / own[group] for group in groups}
        rows.append(
            [
                name,
                *(f"{ratio[group]:.2f}" for group in groups),
                f"{ratio[groups[0]] / ratio[groups[-1]]:.2f}",
            ]
        )
    print(f"positive gradients over those of {loaded.config.cell.loss}, {run}, step {loaded.step}\n")
    print(markdown(["loss", *groups, f"{groups[0]} / {groups[-1]}"], rows))
