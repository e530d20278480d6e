"""``python -m scripts.report mechanism [table=shapes] [losses=[cbfl_instances,afl]] [parts=[0,2,-1]] [results=results]``: how hard a
loss pushes the positives of each frequency group, beside the table's baseline, early and late in training."""

from __future__ import annotations

import sys

from afl.reporting.mechanism import gradient_ratios, to_markdown
from scripts.entry import options_of
from scripts.kept import kept_table

DEFAULTS = {
    "table": "shapes",
    "losses": ["cbfl_instances", "afl"],
    "parts": [0, 2, -1],
    "results": "results",
}


def write_mechanism(arguments: list[str]) -> None:
    """Print the ratios of a table's records, and write them to ``results/TABLE/mechanism.md``."""
    options = options_of(arguments, DEFAULTS)
    kept = kept_table(options)
    found = gradient_ratios(kept.records, options["losses"], kept.spec.baseline, options["parts"])
    if not found:
        sys.exit(
            f"{kept.folder / 'records'} has no seed with runs of {kept.spec.baseline} and of {', '.join(options['losses'])}"
        )
    kept.write("mechanism.md", to_markdown(found))
