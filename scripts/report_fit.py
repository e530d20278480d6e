"""``python -m scripts.report fit [table=shapes] [losses=[fl,afl]] [metrics=[AP_r,AP_f]] [runs=outputs] [results=results]``: how well the
training images themselves are fitted, beside the validation images."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from afl.reporting.fit import rows_of, to_markdown
from afl.tracking import FINISHED, write_json
from afl.training.checkpoint import LAST
from afl.training.evaluation import evaluate_run
from afl.training.load import load_run
from scripts.entry import options_of
from scripts.kept import kept_table

DEFAULTS = {
    "table": "shapes",
    "losses": ["fl", "afl"],
    "metrics": ["AP_r", "AP_f"],
    "runs": "outputs",
    "results": "results",
}


def write_fit(arguments: list[str]) -> None:
    """Measure the runs of a table that lie in ``runs`` and were not measured before, keep the figures in ``results/TABLE/fit.json``,
    print what all of them say and write it to ``fit.md``."""
    options = options_of(arguments, DEFAULTS)
    kept = kept_table(options)
    path = kept.folder / "fit.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for record in kept.records:
        folder = Path(options["runs"]) / record.key
        wanted = record.status == FINISHED and record.loss in options["losses"]
        if wanted and record.key not in known and (folder / "checkpoints" / LAST).exists():
            known[record.key] = on_training_images(folder)
            print(f"{record.key}: AP {100 * known[record.key]['AP']:.1f} on its training images")
            write_json(path, known)
    blocks = [
        to_markdown(rows, options["losses"], metric)
        for metric in options["metrics"]
        if (rows := rows_of(kept.records, known, options["losses"], metric))
    ]
    if not blocks:
        sys.exit(
            f"none of the runs of {', '.join(options['losses'])} in {kept.folder / 'records'} has been measured or has its weights in "
            f"{options['runs']}; say where they are: runs=FOLDER"
        )
    kept.write("fit.md", "\n\n".join(blocks))


def on_training_images(folder: Path) -> dict[str, Any]:
    """The figures of a run's own evaluation, taken on its training images: as they are, without augmentation."""
    run = load_run(folder, ["trainer.pictures=0"])
    with tempfile.TemporaryDirectory() as scratch:
        metrics = evaluate_run(run, Path(scratch), on_training_images=True)
    return {name: value for name, value in metrics.items() if name != "per_class"}
