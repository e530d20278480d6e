"""``python -m scripts.report choice [table=search] [results=results]``: AFL's free choices by the rule of results/protocol.md."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import OmegaConf

from afl.reporting import load_records
from afl.reporting.choice import arm_scores, choose, to_markdown
from afl.tracking import write_text
from scripts.entry import CONF, options_of

DEFAULTS = {"table": "search", "results": "results"}


def write_choice(arguments: list[str]) -> None:
    """Print what the rule makes of the records of a search, and write it to ``results/TABLE/choice.md``."""
    options = options_of(arguments, DEFAULTS)
    spec = OmegaConf.load(CONF / "table" / f"{options['table']}.yaml")
    if "factors" not in spec:
        sys.exit(f"table={options['table']} is no search: it names no factors")
    folder = Path(options["results"]) / options["table"]
    records = load_records(sorted((folder / "records").glob("*.json")))
    factors = OmegaConf.to_container(spec.factors)
    text = to_markdown(choose(arm_scores(records, spec.baseline), spec.start, factors))
    write_text(folder / "choice.md", text + "\n")
    print(text)
    print("written:", folder / "choice.md")
