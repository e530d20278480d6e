"""The actions of ``scripts.table``: plan a table, train its missing runs, or build it from its records."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from afl.config import ConfigError
from afl.reporting import Table, agreement, build_table, connect, load_records, server_records
from afl.reporting.records import cell_of, unit_name
from afl.tables.cells import cells_of
from afl.tables.committed import portable, table_spec
from afl.tables.expected import compared
from afl.tables.pinned import pinned, require_trainable
from afl.tables.plan import plan
from afl.tables.sweep import READING, headline, run
from afl.tracking import FINISHED, Record, write_record, write_text
from datasets import DataError

console = Console() if sys.stdout.isatty() else Console(width=150)


def act(config: DictConfig) -> None:
    """Do what ``config.action`` asks for: plan, run or build; the last two also print and write the table."""
    actions = {"plan": _plan, "run": _run, "build": _build}
    if config.action not in actions or config.source not in ("disk", "wandb"):
        sys.exit(
            f"action is {config.action!r} and source is {config.source!r}; action must be build, run or plan, and source must be "
            "disk or wandb"
        )
    _check_numbers(config)
    actions[config.action](config)


def _check_numbers(config: DictConfig) -> None:
    """Reject seeds that are not a list of whole numbers, and fewer than one job; a single seed becomes a list.

    Raises:
        ConfigError: naming the setting and its form.
    """
    if type(config.seeds) is int:
        config.seeds = [config.seeds]
    seeds = config.seeds
    if seeds is not None and not (
        OmegaConf.is_list(seeds) and all(type(seed) is int and seed >= 0 for seed in seeds)
    ):
        raise ConfigError(f"seeds is {seeds!r}; it needs a list of whole numbers, such as seeds=[0,1,2]")
    if type(config.jobs) is not int or config.jobs < 1:
        raise ConfigError(f"jobs is {config.jobs!r}; it needs a whole number of at least 1")


def _plan(config: DictConfig) -> None:
    with console.status(READING):
        found = plan(config, list(config.seeds or [0]))
    console.print(found.to_rich())


def _run(config: DictConfig) -> None:
    """Train the missing runs, then compare the user's table with the committed one."""
    name = config.table.name
    require_trainable(config.table)
    _print_pin(config)
    seeds = list(config.seeds or [0])
    # A table that cannot be built is refused before its runs are trained.
    wanted = table_spec(config.table, seeds).cells()
    records = run(config, seeds, console)
    kept = _kept_records(config)
    if config.publish:
        seeds = sorted({*seeds, *(record.seed for record in kept)})
        _refuse_smaller(config, seeds, kept)
        finished = {_file_name(record, config.table) for record in kept if record.status == FINISHED}
        for record in records:
            file_name = _file_name(record, config.table)
            if record.status != FINISHED and file_name in finished:
                console.out(f"{file_name} failed; its committed record is kept", highlight=False)
                continue
            write_record(_kept_folder(config) / f"{file_name}.json", portable(record))
        table = build_table(_kept_records(config), table_spec(config.table, seeds))
        _write(table, Path(config.results) / name)
        console.print(table.to_rich())
        if config.table.get("trained_at"):
            console.out(f"The committed records have changed: correct trained_at in conf/table/{name}.yaml")
    else:
        table = build_table(records, table_spec(config.table, seeds))
        _show_comparison(table, kept, config)
    _print_expected(table, config)
    if any(record.status != FINISHED for record in records) or len(records) < len(wanted):
        sys.exit(1)


def _print_pin(config: DictConfig) -> None:
    """Print the commits at which the committed records were trained."""
    if pinned(config.table):
        console.out(f"{pinned(config.table)}.", highlight=False)


def _print_expected(table: Table, config: DictConfig) -> None:
    """Print each published figure that the table's file lists, with the figure that was reached."""
    for line in compared(table, config.table.get("expected") or []):
        console.out(line, highlight=False)


def _show_comparison(table: Table, kept: list[Record], config: DictConfig) -> None:
    """Print the user's table, compared with the committed one if it exists, and write the table and the comparison."""
    folder = Path(config.tables) / config.table.name
    _write(table, folder)
    seeds = sorted({record.seed for record in kept})
    committed = build_table(kept, table_spec(config.table, seeds)) if kept else None
    found = agreement.agreements(table, committed) if committed else []
    for note in table.notes:
        console.out(f"{note}.", style="yellow", highlight=False)
    if not found:
        console.print(table.to_rich())
        return
    console.print(agreement.to_rich(found, headline(config.table.metrics)))
    for line in agreement.other_protocol(table, committed):
        console.out(f"The protocols differ: {line}", highlight=False)
    verdicts = Counter(one.verdict for one in found)
    line = f"{len(found)} figures compared with {_kept_folder(config).parent} (seeds {', '.join(map(str, seeds))}): "
    line += ", ".join(f"{number} {verdict}" for verdict, number in verdicts.items())
    if tested := verdicts[agreement.WITHIN] + verdicts[agreement.OUTSIDE]:
        line += f"; chance alone puts about {0.05 * tested:.0f} outside the noise over seeds"
    console.out(line, highlight=False)
    write_text(folder / "committed.md", agreement.to_markdown(found))
    console.print(f"written: {folder}/committed.md, all figures of both tables")


def _build(config: DictConfig) -> None:
    """Build the table from the committed records, or from the records of a W&B project; it names the runs that are missing."""
    name = config.table.name
    if config.source == "wandb":
        _refuse_from_server(config)
        records = _on_server(config)
        if not records:
            sys.exit(f"W&B project {config.project} has no record of a run of table={name}")
    else:
        records = _kept_records(config)
        if not records:
            sys.exit(
                f"{_kept_folder(config)} has no records yet; train them: python -m scripts.table table={name} action=run publish=true"
            )
    seeds = list(config.seeds or sorted({record.seed for record in records}))
    if config.publish:
        _refuse_smaller(config, seeds, _kept_records(config))
    table = build_table(records, table_spec(config.table, seeds))
    console.print(table.to_rich())
    _print_expected(table, config)
    if config.source == "disk":
        _print_pin(config)
    if config.publish:
        _write(table, Path(config.results) / name)
    elif config.source == "wandb":
        _write(table, Path(config.tables) / name)
    if any(record.status != FINISHED for record in records):
        sys.exit(1)


def _write(table: Table, folder: Path) -> None:
    for name, text in (
        ("table.md", table.to_markdown()),
        ("table.tex", table.to_latex()),
        ("table.csv", table.to_folded_csv()),
        ("cells.csv", table.to_csv()),
    ):
        write_text(folder / name, text)
    console.print(f"written: {folder}/table.md, table.tex, table.csv, cells.csv", soft_wrap=True)


def _kept_folder(config: DictConfig) -> Path:
    return Path(config.results) / config.table.name / "records"


def _kept_records(config: DictConfig) -> list[Record]:
    return load_records(sorted(_kept_folder(config).glob("*.json")))


def _file_name(record: Record, table: DictConfig) -> str:
    names = (table.get("variants") or {}).get(record.dataset) or {}
    unit = unit_name({name: record.config["dataset"][name] for name in names}, record.seed)
    return (
        f"{record.dataset}-{record.detector}-{record.loss.replace('/', '_')}-{unit if names else f's{unit}'}"
    )


def _refuse_smaller(config: DictConfig, seeds: list[int], kept: list[Record]) -> None:
    """Refuse to publish a table that lacks runs of the committed one.

    Raises:
        ValueError: a committed record does not belong to the table.
    """
    table, spec = config.table, table_spec(config.table, seeds)
    cells = set(spec.cells())
    dropped = [
        _file_name(record, table)
        for record in kept
        if cell_of(record, spec.variants.get(record.dataset, ())) not in cells
    ]
    if dropped:
        raise ValueError(
            f"publish=true would drop {len(dropped)} of the records in {_kept_folder(config)}, including {dropped[0]}; leave out "
            "seeds=... and table....=..., or leave out publish=true to write a separate table"
        )


def _refuse_from_server(config: DictConfig) -> None:
    """Refuse what the records of a server cannot give.

    Raises:
        ConfigError: the table would be published without its records, or its runs are combined from folds.
    """
    if config.publish:
        raise ConfigError(
            f"publish=true writes a table that is built from the records in {_kept_folder(config)}; leave out source=wandb, or leave out "
            "publish=true to write a separate table"
        )
    if config.table.get("folds"):
        raise ConfigError(
            f"table={config.table.name} evaluates the detections of two folds together, which a W&B server does not have; build it from the "
            "run directories: action=run"
        )


def _on_server(config: DictConfig) -> list[Record]:
    """The records of the table's runs in a W&B project."""
    table = config.table
    own = [
        record
        for record in server_records(connect(), entity=config.entity, project=config.project)
        if record.detector in table.detectors
        and record.loss in table.losses
        and record.dataset in table.datasets
    ]
    seeds = sorted({record.seed for record in own})
    try:
        keys = {cell.folder.name for cell in cells_of(config, seeds)}
    except (
        DataError
    ):  # without the data the keys of the runs are unknown, so all records of these choices are used
        return own
    others = [record.key for record in own if record.key not in keys]
    if others:
        console.print(
            f"left out, because their configuration differs from the table's: {', '.join(others)}",
            markup=False,
        )
    return [record for record in own if record.key in keys]
