"""``python -m scripts.report contrast [table=shapes] [loss=afl] [against=cbfl_instances] [results=results]``: one loss of a table against
another, by seed."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from afl.reporting import build_table, load_records
from afl.reporting.contrast import contrast_of, to_markdown
from afl.tracking import write_text
from scripts.entry import CONF, options_of
from scripts.table import table_spec

DEFAULTS = {"table": "shapes", "loss": "afl", "against": "cbfl_instances", "results": "results"}


def write_contrast(arguments: list[str]) -> None:
    """Print the differences, and write them to ``results/TABLE/LOSS-against-AGAINST.md``."""
    options = options_of(arguments, DEFAULTS)
    spec = OmegaConf.load(CONF / "table" / f"{options['table']}.yaml")
    folder = Path(options["results"]) / options["table"]
    records = load_records(sorted((folder / "records").glob("*.json")))
    table = build_table(records, table_spec(spec, sorted({record.seed for record in records})))
    loss, against = options["loss"], options["against"]
    text = to_markdown(contrast_of(table, loss, against), loss, against)
    path = folder / f"{loss}-against-{against}.md".replace("/", "_")
    write_text(path, text + "\n")
    print(text)
    print("written:", path)
