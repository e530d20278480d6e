"""The committed records of a table: read by its name, and freed of the folders of the machine that made them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from afl.config import CONF, ConfigError, unknown_choice
from afl.reporting import Table, TableSpec, build_table, load_records
from afl.reporting.caption import RECONSTRUCTION
from afl.tracking import Record, write_text
from afl.training.compose import compose_cell


@dataclass(frozen=True)
class KeptTable:
    """A file of ``conf/table`` with what ``results/NAME`` has of it.

    Attributes:
        folder: ``results/NAME``.
        spec: the file.
        records: those of ``folder/records``.
    """

    folder: Path
    spec: DictConfig
    records: list[Record]

    @property
    def seeds(self) -> list[int]:
        """Of which there are records."""
        return sorted({record.seed for record in self.records})

    def table(self) -> Table:
        """Folded over all seeds that there are."""
        return build_table(self.records, table_spec(self.spec, self.seeds))

    def write(self, name: str, text: str) -> None:
        """Print an answer and keep it next to the records."""
        write_answer(self.folder / name, text)


def write_answer(path: Path, text: str) -> None:
    """Print an answer and write it as Markdown; one that shows AFL ends with the note that AFL is a reconstruction."""
    if "afl" in text:
        text += f"\n\n{RECONSTRUCTION}."
    write_text(path, text + "\n")
    print(text)
    print("written:", path)


def kept_table(options: Mapping[str, Any]) -> KeptTable:
    """The table ``options['table']`` below ``options['results']``; ConfigError where there is none."""
    problem = unknown_choice([f"table={options['table']}"])
    if problem:
        raise ConfigError(problem)
    spec = OmegaConf.load(CONF / "table" / f"{options['table']}.yaml")
    folder = Path(options["results"]) / options["table"]
    records = load_records(sorted((folder / "records").glob("*.json")))
    if not records:
        raise ConfigError(
            f"{folder / 'records'} has no records yet; make them: python -m scripts.table table={options['table']} action=run"
        )
    return KeptTable(folder, spec, records)


def table_spec(spec: DictConfig, seeds: list[int]) -> TableSpec:
    """What a file of ``conf/table`` describes."""
    return TableSpec(
        name=spec.name,
        detectors=list(spec.detectors),
        losses=list(spec.losses),
        datasets=list(spec.datasets),
        seeds=seeds,
        metrics=list(spec.metrics),
        baseline=spec.baseline,
        title=spec.title,
        label=spec.get("label") or "",
        variants=OmegaConf.to_container(spec.variants) if spec.get("variants") else {},
    )


def portable(record: Record) -> Record:
    """The record with its folders as they are by default: where data and runs lay on one machine tells another nothing."""
    config = record.config
    usual = _usual_folders(record.dataset)
    paths = config.get("paths", {})  # which a record of several folds lacks
    folders = {paths[name]: folder for name, folder in usual["paths"].items() if name in paths}
    folders[config["dataset"]["root"]] = usual["root"]
    longest_first = sorted(folders.items(), key=lambda pair: -len(pair[0]))
    return replace(record, config=_moved(config, longest_first))


@functools.cache
def _usual_folders(dataset: str) -> dict[str, Any]:
    """``paths`` and the ``root`` of a data set by default: the same for every detector and loss, so composed once."""
    usual = OmegaConf.to_container(
        compose_cell(detector="centernet", loss="fl", overrides=[f"dataset={dataset}"]), resolve=True
    )
    return {"paths": usual["paths"], "root": usual["dataset"]["root"]}


def _moved(value: Any, folders: list[tuple[str, str]]) -> Any:
    """``value`` with every text that is one of the folders, or a path below it, moved to the folder's new place."""
    if isinstance(value, Mapping):
        return {name: _moved(part, folders) for name, part in value.items()}
    if isinstance(value, list):
        return [_moved(part, folders) for part in value]
    if isinstance(value, str):
        for old, new in folders:
            if value == old or value.startswith(f"{old}/"):
                return new + value.removeprefix(old)
    return value
