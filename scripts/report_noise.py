"""``python -m scripts.report noise [table=shapes] [seeds=5] [results=results]``: how much of a table the seed alone moves."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import OmegaConf

from afl.reporting import build_table, load_records
from afl.reporting.noise import noise_of, to_markdown
from afl.tracking import write_text
from scripts.entry import CONF, options_of
from scripts.table import table_spec

DEFAULTS = {"table": "shapes", "seeds": 5, "results": "results"}


def write_noise(arguments: list[str]) -> None:
    """Print the spread over seeds in a table's records, and write it to ``results/TABLE/noise.md``."""
    options = options_of(arguments, DEFAULTS)
    spec = OmegaConf.load(CONF / "table" / f"{options['table']}.yaml")
    folder = Path(options["results"]) / options["table"]
    records = load_records(sorted((folder / "records").glob("*.json")))
    found = sorted({record.seed for record in records})
    if len(found) < 2:
        sys.exit(f"{folder / 'records'} has records of {len(found)} seed; the spread over seeds needs two")
    text = to_markdown(noise_of(build_table(records, table_spec(spec, found))), options["seeds"])
    write_text(folder / "noise.md", text + "\n")
    print(text)
    print("written:", folder / "noise.md")
