"""``python -m scripts.report mechanism [table=shapes] [losses=[cbfl_instances,afl]] [parts=[0,2,-1]] [results=results]``: how hard a
loss pushes the positives of each frequency group, beside the table's baseline, early and late in training."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import OmegaConf

from afl.reporting import load_records
from afl.reporting.mechanism import gradient_ratios, to_markdown
from afl.tracking import write_text
from scripts.entry import CONF, options_of

DEFAULTS = {
    "table": "shapes",
    "losses": ["cbfl_instances", "afl"],
    "parts": [0, 2, -1],
    "results": "results",
}


def write_mechanism(arguments: list[str]) -> None:
    """Print the ratios of a table's records, and write them to ``results/TABLE/mechanism.md``."""
    options = options_of(arguments, DEFAULTS)
    spec = OmegaConf.load(CONF / "table" / f"{options['table']}.yaml")
    folder = Path(options["results"]) / options["table"]
    records = load_records(sorted((folder / "records").glob("*.json")))
    found = gradient_ratios(records, options["losses"], spec.baseline, options["parts"])
    if not found:
        sys.exit(
            f"{folder / 'records'} has no seed with runs of {spec.baseline} and of {', '.join(options['losses'])}"
        )
    text = to_markdown(found)
    write_text(folder / "mechanism.md", text + "\n")
    print(text)
    print("written:", folder / "mechanism.md")
