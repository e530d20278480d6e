"""``python -m scripts.report contrast [table=shapes] [loss=afl] [against=cbfl_instances] [results=results]``: one loss of a table against
another, by seed."""

from __future__ import annotations

from afl.reporting.contrast import contrast_of, to_markdown
from scripts.entry import options_of
from scripts.kept import kept_table

DEFAULTS = {"table": "shapes", "loss": "afl", "against": "cbfl_instances", "results": "results"}


def write_contrast(arguments: list[str]) -> None:
    """Print the differences, and write them to ``results/TABLE/LOSS-against-AGAINST.md``."""
    options = options_of(arguments, DEFAULTS)
    kept = kept_table(options)
    loss, against = options["loss"], options["against"]
    text = to_markdown(contrast_of(kept.table(), loss, against), loss, against)
    kept.write(f"{loss}-against-{against}.md".replace("/", "_"), text)
