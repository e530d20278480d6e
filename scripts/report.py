"""Reports from losses and records.

    python -m scripts.report figures [table=shapes]             # from the records behind a committed table
    python -m scripts.report figures runs=outputs               # from the run directories
    python -m scripts.report figures records=FOLDER results=FOLDER
    python -m scripts.report heads run=outputs/NAME             # what a detector's heads see of one image
    python -m scripts.report html                               # everything in one page, outputs/report.html
    python -m scripts.report dataset dataset=shapes             # what is in a data set, in one page
    python -m scripts.report compare outputs/ONE outputs/OTHER  # what was changed, and where AP moved
    python -m scripts.report gallery loss=afl                   # what every detector finds in the same images
    python -m scripts.report choice                             # which of AFL's free choices its search selects
    python -m scripts.report contrast                           # one loss of a table against another: what the gate adds
    python -m scripts.report classes                            # the classes of a table that a loss moves most
    python -m scripts.report noise                              # how much of a table the seed alone moves
    python -m scripts.report mechanism                          # how hard a loss pushes each frequency group, early and late
    python -m scripts.report gate                               # how AFL's gate opens over training
    python -m scripts.report fit                                # how well the training images themselves are fitted
    python -m scripts.report documents                          # results' tables into README.md and results/README.md

``figures`` draws, as PNG and PDF in ``results/figures``: the gradient of every loss against p, alone or, where the others of
its map decide, in an example of a map, AFL's gate, class weights against class count, and, where there are records of fl, cbl
or afl, the gradient mass over their training.
"""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from afl.losses import MapInfo, MapLoss
from afl.reporting import load_records
from afl.reporting.figures import (
    DEPENDS,
    EXAMPLE_OVERLAP,
    MASS_LOSSES,
    RECONSTRUCTION,
    configured_curves,
    draw_class_weights,
    draw_gate,
    draw_gradient_mass,
    draw_gradients,
    draw_gradients_in_a_map,
    family_curves,
    save,
)
from afl.tracking import Record
from afl.training.build import instantiate
from afl.training.checkpoint import CheckpointError
from datasets.shapes import BENCHMARK_FILLS, BENCHMARK_OUTLINES, instances_by_rank
from scripts.entry import CONF, asks_for_help, options_of, quiet_libraries
from scripts.report_choice import write_choice
from scripts.report_classes import write_classes
from scripts.report_compare import write_comparison
from scripts.report_contrast import write_contrast
from scripts.report_dataset import write_dataset_page
from scripts.report_documents import refresh_documents
from scripts.report_fit import write_fit
from scripts.report_gallery import write_gallery
from scripts.report_gate import write_gate
from scripts.report_heads import draw_heads
from scripts.report_html import write_report
from scripts.report_mechanism import write_mechanism
from scripts.report_noise import write_noise

MAIN_LOSSES = ("fl", "cbl", "afl", "cbfl")
DEFAULTS = {"records": None, "runs": None, "table": "shapes", "results": "results"}


def main(arguments: list[str]) -> None:
    """One of ``COMMANDS`` and its options."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    quiet_libraries()
    if asks_for_help(arguments, __doc__):
        return
    if not arguments or arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1) if arguments else []
        meant = f"did you mean {near[0]}?" if near else "which report?"
        sys.exit(f"{meant} python -m scripts.report {' | '.join(COMMANDS)}")
    COMMANDS[arguments[0]](arguments[1:])


def figures(arguments: list[str]) -> None:
    """``figures [table=NAME | records=FOLDER | runs=FOLDER] [results=FOLDER]``: of the losses."""
    options = options_of(arguments, DEFAULTS)
    if options["records"] and options["runs"]:
        sys.exit("figures are drawn from records=FOLDER or from runs=FOLDER, not from both")
    draw_figures(records_of(options), Path(options["results"]) / "figures")


def records_of(options: dict[str, str | None]) -> list[Record]:
    """Records of run directories (``runs``), of a folder (``records``), or, where neither is given, those that are kept of ``table``:
    other tables have the same cells on other terms."""
    if options["runs"]:
        return load_records(options["runs"])
    if options["records"]:
        folder = Path(options["records"])
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder of records")
        return load_records(sorted(folder.glob("*.json")) or sorted(folder.rglob("records/*.json")))
    return load_records(sorted((Path(options["results"]) / options["table"] / "records").glob("*.json")))


def draw_figures(records: list[Record], folder: Path) -> None:
    """Draw everything that can be drawn, and say what cannot."""
    losses = configured_losses()
    curves, without = configured_curves(losses)
    title = f"First step, class weight 5, IoU {EXAMPLE_OVERLAP} ({RECONSTRUCTION})"
    drawn = {
        "gradient": draw_gradients(family_curves(), f"Gradient of one element ({RECONSTRUCTION})"),
        "gradient_all_losses": draw_gradients(curves, title, legend_columns=1, root=True),
        "gate": draw_gate(),
        "class_weights": draw_class_weights(benchmark_counts(), "LongTail Shapes"),
    }
    apart = {name: losses[name] for name, reason in without.items() if reason == DEPENDS}
    if apart:
        drawn["gradient_in_a_map"] = draw_gradients_in_a_map(apart)
    masses = draw_gradient_mass(records)
    for name, figure in (
        drawn | {f"gradient_mass-{place}": figure for place, figure in masses.items()}
    ).items():
        print("written:", ", ".join(map(str, save(figure, folder, name))))
    for name, reason in without.items():
        print(f"no curve of {name}: {reason}" + ("; see gradient_in_a_map" if name in apart else ""))
    if not masses:
        print(
            f"no gradient_mass: none of {len(records)} records is a finished run of {', '.join(MASS_LOSSES)} with gradient "
            "dynamics; train some and say where they are: python -m scripts.report figures runs=outputs"
        )


def configured_losses() -> dict[str, Callable[[MapInfo], MapLoss]]:
    """Factories of all arms by name, the main ones first."""
    others = sorted({path.stem for path in (CONF / "loss").glob("*.yaml")} - set(MAIN_LOSSES))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return {
            name: instantiate(compose(overrides=[f"+loss={name}"]).loss) for name in (*MAIN_LOSSES, *others)
        }


def benchmark_counts() -> list[int]:
    """Training instances of the classes of LongTail Shapes, most frequent first."""
    made = OmegaConf.load(CONF / "dataset" / "shapes_lvis.yaml").folder
    classes = len(BENCHMARK_OUTLINES) * len(BENCHMARK_FILLS)
    return instances_by_rank(classes, made.num_train * made.objects_per_image, made.tail_exponent).tolist()


COMMANDS = {
    "figures": figures,
    "heads": draw_heads,
    "html": write_report,
    "dataset": write_dataset_page,
    "compare": write_comparison,
    "gallery": write_gallery,
    "choice": write_choice,
    "contrast": write_contrast,
    "classes": write_classes,
    "noise": write_noise,
    "mechanism": write_mechanism,
    "gate": write_gate,
    "fit": write_fit,
    "documents": refresh_documents,
}


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (CheckpointError, OSError, ValueError) as problem:
        sys.exit(str(problem))
