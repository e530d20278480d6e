"""The commands that draw figures of losses, from their code or from records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from afl.config import CONF, composed
from afl.losses import MapInfo, MapLoss
from afl.reporting import load_records
from afl.reporting.figures.losses import draw_family, draw_gate
from afl.reporting.figures.mass import MASS_LOSSES, draw_gradient_mass
from afl.reporting.figures.push import draw_push
from afl.reporting.figures.style import save
from afl.reporting.figures.trade import draw_trade
from afl.reporting.frame import frame
from afl.tables.committed import kept_table
from afl.tracking import Record
from afl.training.build import instantiate

MAIN_LOSSES = ("fl", "cbl", "afl", "cbfl")


def figures(runs: str = "", table: str = "shapes", results: str = "results") -> None:
    """The figures of the losses, as PNG and PDF in RESULTS/figures.

        python -m scripts.report figures [table=shapes]        # from the records behind a committed table
        python -m scripts.report figures runs=outputs          # from run directories

    The gradient of the main losses against p, AFL's gate, and the gradient mass in the logged batches over training if there are
    records of fl, cbl or afl. The website has the gradient of every loss.
    """
    kept = sorted((Path(results) / table / "records").glob("*.json"))
    draw_figures(load_records(runs or kept), Path(results) / "figures")


def draw_figures(records: list[Record], folder: Path) -> None:
    """Draw every figure for which there is material, and name the others."""
    masses = draw_gradient_mass(records)
    drawn = {"gradient": draw_family(), "gate": draw_gate()}
    for name, figure in (
        drawn | {f"gradient_mass-{place}": figure for place, figure in masses.items()}
    ).items():
        print("written:", ", ".join(map(str, save(figure, folder, name))))
    if not masses:
        print(
            f"no gradient_mass: none of {len(records)} records is a finished run of {', '.join(MASS_LOSSES)} with gradient "
            "dynamics; train some and name their folder: python -m scripts.report figures runs=outputs"
        )


def configured_losses() -> dict[str, Callable[[MapInfo], MapLoss]]:
    """Factories of all losses in ``conf/loss`` by name, the main ones first."""
    others = sorted({path.stem for path in (CONF / "loss").glob("*.yaml")} - set(MAIN_LOSSES))
    return {name: instantiate(composed([f"+loss={name}"], None).loss) for name in (*MAIN_LOSSES, *others)}


def trade(table: str = "remedies", results: str = "results", output: str = "") -> Path:
    """The gain of each loss of a table on its rarest classes against its loss on the most frequent ones, as points.

        python -m scripts.report trade [table=remedies] [output=FOLDER]

    Differences to the table's baseline, averaged over detectors, with 95 % intervals that pool the noise of the detectors. A table
    that is still being filled is drawn over the detectors that have the most losses. Writes trade-TABLE.png and trade-TABLE.pdf
    into RESULTS/figures.
    """
    kept = kept_table(table, results)
    paths = save(
        draw_trade(kept.most_complete()), Path(output or Path(results) / "figures"), f"trade-{table}"
    )
    print("written:", ", ".join(map(str, paths)))
    return paths[0]


def push(
    tables: Sequence[str] = (
        "shapes",
        "confirmation",
        "confirmation_repeats",
        "trashcan_frames",
        "trashcan",
        "photos_gpu",
        "confirmation_foda",
    ),
    losses: Sequence[str] = (
        "cbfl",
        "afl",
        "afl_anchored_head",
        "irfs",
        "afl_irfs",
        "afl_anchored_head_irfs",
    ),
    results: str = "results",
    output: str = "",
) -> Path:
    """The gradient of each loss on the positives of each frequency group over training, and the gain of each group.

        python -m scripts.report push [tables=[shapes,trashcan]] [losses=[cbfl,afl]] [output=FOLDER]

    The push is the sum of |dL/dz| as a multiple of the table's baseline on the same seeds, averaged over detectors. It is measured
    only in logged batches, one in every trainer.log_every steps. A point is the mean over a tenth of them, which may be one batch,
    and is missing if these have no positive of the group. The intervals of the gains pool the noise of the
    detectors. Each table is a row of one figure; losses=[] draws every loss of the tables. Writes push.png and push.pdf into RESULTS/figures.
    """
    material = {}
    for name in tables:
        kept = kept_table(name, results)
        whole = kept.table()
        material[name] = (whole, frame(whole.cells))
    paths = save(draw_push(material, losses), Path(output or Path(results) / "figures"), "push")
    print("written:", ", ".join(map(str, paths)))
    return paths[0]
