"""``python -m scripts.report noise [table=shapes] [seeds=5] [results=results]``: how much of a table the seed alone moves."""

from __future__ import annotations

import sys

from afl.reporting.noise import noise_of, to_markdown
from scripts.entry import options_of
from scripts.kept import kept_table

DEFAULTS = {"table": "shapes", "seeds": 5, "results": "results"}


def write_noise(arguments: list[str]) -> None:
    """Print the spread over seeds in a table's records, and write it to ``results/TABLE/noise.md``."""
    options = options_of(arguments, DEFAULTS)
    kept = kept_table(options)
    if len(kept.seeds) < 2:
        sys.exit(f"{kept.folder / 'records'} has records of one seed; the spread over seeds needs two")
    kept.write("noise.md", to_markdown(noise_of(kept.table()), options["seeds"]))
