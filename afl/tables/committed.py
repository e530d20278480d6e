"""The committed records of a table: reads them, and replaces the folders of the machine that produced them."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from afl.config import CONF, ConfigError, unknown_choice
from afl.reporting import Table, TableSpec, build_table, load_records
from afl.tracking import FINISHED, RECONSTRUCTION, Record, names_afl, write_text
from afl.training.compose import compose_cell


@dataclass(frozen=True)
class KeptTable:
    """A table with its committed records.

    Attributes:
        folder: ``results/NAME``.
        spec: content of ``conf/table/NAME.yaml``.
        records: the records in ``folder/records``.
    """

    folder: Path
    spec: DictConfig
    records: list[Record]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the records."""
        return sorted({record.seed for record in self.records})

    def table(self) -> Table:
        """The table over all seeds of the records."""
        return build_table(self.records, table_spec(self.spec, self.seeds))

    def most_complete(self) -> Table:
        """The same over the data sets and detectors that have finished runs of the most losses, so that a table that is still being
        filled can be read; a complete table is unchanged."""
        whole = self.table()
        losses: dict[tuple[str, str], set[str]] = {}
        for (dataset, detector, loss, _), record in whole.cells.items():
            if record is not None and record.status == FINISHED:
                losses.setdefault((dataset, detector), set()).add(loss)
        most = max(map(len, losses.values()), default=0)
        full = [place for place, own in losses.items() if len(own) == most]
        datasets = [name for name in whole.spec.datasets if any(name == one for one, _ in full)]
        detectors = [name for name in whole.spec.detectors if all((one, name) in full for one in datasets)]
        if not detectors:
            return whole
        return build_table(self.records, replace(whole.spec, datasets=datasets, detectors=detectors))

    def write(self, name: str, text: str) -> None:
        """Print an answer and write it to the table's folder."""
        write_answer(self.folder / name, text)


def write_answer(path: Path, text: str) -> None:
    """Print an answer and write it as Markdown; one that shows AFL ends with the note that AFL is a reconstruction."""
    if names_afl(text):
        text += f"\n\n{RECONSTRUCTION}."
    write_text(path, text + "\n")
    print(text)
    print("written:", path)


def kept_table(name: str, results: str | Path) -> KeptTable:
    """Read the table ``name`` below the folder ``results``.

    Raises:
        ConfigError: the table does not exist or has no records.
    """
    problem = unknown_choice([f"table={name}"])
    if problem:
        raise ConfigError(problem)
    spec = OmegaConf.load(CONF / "table" / f"{name}.yaml")
    folder = Path(results) / name
    records = load_records(sorted((folder / "records").glob("*.json")))
    if not records:
        raise ConfigError(
            f"{folder / 'records'} has no records yet; train them: python -m scripts.table table={name} action=run publish=true"
        )
    return KeptTable(folder, spec, records)


def table_spec(spec: DictConfig, seeds: list[int]) -> TableSpec:
    """The table that a file of ``conf/table`` describes."""
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
    """The record with default folders instead of the folders of the machine that produced it; of any other absolute path only the
    last name is kept."""
    config = record.config
    usual = _usual_folders(record.dataset)
    paths = config.get("paths", {})  # missing in a record of several folds
    folders = {paths[name]: folder for name, folder in usual["paths"].items() if name in paths}
    folders[config["dataset"]["root"]] = usual["root"]
    longest_first = sorted(folders.items(), key=lambda pair: -len(pair[0]))
    error = record.error and _ABSOLUTE.sub(lambda path: Path(path[0]).name, record.error)
    return replace(record, config=_moved(config, longest_first), error=error)


# An absolute path inside a sentence; not the end of a relative path or of an address.
_ABSOLUTE = re.compile(r"(?<![\w./:~-])~?(?:/[\w.+@=,-]*[\w+@=-])+/?")


@functools.cache
def _usual_folders(dataset: str) -> dict[str, Any]:
    """The default ``paths`` and ``root`` of a data set; cached, because they are the same for every detector and loss."""
    # A user's data set needs no file in conf/dataset.
    known = (CONF / "dataset" / f"{dataset}.yaml").is_file()
    chosen = (
        [f"dataset={dataset}"] if known else ["dataset=custom", f"dataset.root=${{paths.data}}/{dataset}"]
    )
    usual = OmegaConf.to_container(
        compose_cell(detector="centernet", loss="fl", overrides=chosen), resolve=True
    )
    return {"paths": usual["paths"], "root": usual["dataset"]["root"]}


def _moved(value: Any, folders: list[tuple[str, str]]) -> Any:
    """Replace the folders, and paths below them, in all strings of ``value``, and shorten other absolute paths to their last name."""
    if isinstance(value, Mapping):
        return {name: _moved(part, folders) for name, part in value.items()}
    if isinstance(value, list):
        return [_moved(part, folders) for part in value]
    if isinstance(value, str):
        for old, new in folders:
            if value == old or value.startswith(f"{old}/"):
                return new + value.removeprefix(old)
        if value.startswith(("/", "~/")):
            return Path(value).name
    return value
