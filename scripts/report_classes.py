"""``python -m scripts.report classes [table=trashcan] [losses=[fl,afl]] [shown=6] [results=results]``: the classes in which the losses of a
table, by default all of them, differ most, one by one."""

from __future__ import annotations

import sys

from afl.reporting.classes import most_moved, rows_of, to_markdown
from scripts.entry import options_of
from scripts.kept import kept_table

DEFAULTS = {"table": "trashcan", "losses": [], "shown": 6, "results": "results"}


def write_classes(arguments: list[str]) -> None:
    """Print the classes that any loss moves farthest from the first one, and write them to ``results/TABLE/classes.md``."""
    options = options_of(arguments, DEFAULTS)
    kept = kept_table(options)
    losses = options["losses"] or list(kept.spec.losses)
    rows = rows_of(kept.table(), losses, kept.spec.datasets[0])
    if not rows:
        sys.exit(f"no seed of {kept.folder / 'records'} has {', '.join(losses)} on every detector yet")
    kept.write("classes.md", to_markdown(most_moved(rows, losses[0], options["shown"]), losses[0]))
