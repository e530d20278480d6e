"""``python -m scripts.report choice [table=search] [results=results]``: AFL's free choices by the rule of results/protocol.md."""

from __future__ import annotations

import sys

from omegaconf import OmegaConf

from afl.reporting.choice import arm_scores, choose, to_markdown
from scripts.entry import options_of
from scripts.kept import kept_table

DEFAULTS = {"table": "search", "results": "results"}


def write_choice(arguments: list[str]) -> None:
    """Print what the rule makes of the records of a search, and write it to ``results/TABLE/choice.md``."""
    kept = kept_table(options_of(arguments, DEFAULTS))
    if "factors" not in kept.spec:
        sys.exit(f"table={kept.spec.name} is no search: it names no factors")
    scores = arm_scores(kept.records, kept.spec.baseline)
    kept.write(
        "choice.md", to_markdown(choose(scores, kept.spec.start, OmegaConf.to_container(kept.spec.factors)))
    )
