"""``python -m scripts.report gate [tables=[shapes,trashcan]] [loss=afl] [results=results]``: how AFL's gate opens over the training of
several tables."""

from __future__ import annotations

import sys
from pathlib import Path

from afl.reporting.gate import kappas_of, to_markdown
from afl.tracking import write_text
from scripts.entry import options_of
from scripts.kept import kept_table

DEFAULTS = {
    "tables": ["shapes", "scratch", "short", "closed", "bccd", "trashcan_frames", "trashcan"],
    "loss": "afl",
    "results": "results",
}


def write_gate(arguments: list[str]) -> None:
    """Print kappa by table, detector and quarter of the training, and write it to ``results/gate.md``."""
    options = options_of(arguments, DEFAULTS)
    found = {}
    for name in options["tables"]:
        kept = kept_table({"table": name, "results": options["results"]})
        found[name] = kappas_of(kept.records, options["loss"])
        if not found[name]:
            sys.exit(
                f"no finished run of {options['loss']} in {kept.folder / 'records'} has a gate on record"
            )
    text = to_markdown(found)
    path = Path(options["results"]) / "gate.md"
    write_text(path, text + "\n")
    print(text)
    print("written:", path)
