"""Finds the one record of each cell in a folder of runs."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from afl.tracking import explained, files_below
from afl.tracking.record import FINISHED, Record, read_record
from afl.tracking.run_key import VARIANT

log = logging.getLogger(__name__)

Unit = int | str
"""A repetition of a cell: its seed, or a variant of its data set with its seed, ``split0-s1``."""
CellName = tuple[str, str, str, Unit]


def load_records(source: str | Path | Iterable[str | Path]) -> list[Record]:
    """All records of a folder, or of given files and folders, ordered by path.

    Args:
        source: a folder, searched for ``record.json`` at any depth, or several folders and record files.

    Returns:
        The records that can be read. A damaged file is named in a warning and left out; its cell counts as missing.

    Raises:
        FileNotFoundError: ``source`` names a file or folder that does not exist.
    """
    paths: list[Path] = []
    for place in [source] if isinstance(source, str | Path) else source:
        place = Path(place)
        if not place.exists():
            raise FileNotFoundError(f"{place} does not exist; records are read from folders of runs")
        paths += (
            [path for path in files_below(place) if path.name == "record.json"] if place.is_dir() else [place]
        )
    records = []
    for path in paths:
        try:
            records.append(read_record(path))
        except (ValueError, OSError) as error:
            log.warning("left out of the table: %s", explained(error))
    return records


def unit_name(variant: Mapping[str, object], seed: int) -> Unit:
    """``split0-s1`` for the variant {"split": 0} and seed 1; the seed alone if a data set has no variants."""
    return "-".join([*(f"{name}{value}" for name, value in variant.items()), f"s{seed}"]) if variant else seed


def variant_of(unit: Unit) -> str:
    """The part of a unit's name that describes the variant, such as ``split0``; empty if a unit is a seed."""
    return str(unit).rpartition("-s")[0]


def variants_of(records: Iterable[Record]) -> dict[str, dict[str, list]]:
    """By data set, the settings that choose one of its variants (``draw``, ``split``, ``fold``) with their values, if all records of
    the data set have them."""
    settings: dict[str, list[Mapping]] = defaultdict(list)
    for record in records:
        settings[record.dataset].append(record.config.get("dataset", {}))
    found = {
        dataset: {
            name: sorted({one[name] for one in own}) for name in VARIANT if all(name in one for one in own)
        }
        for dataset, own in settings.items()
    }
    return {dataset: own for dataset, own in found.items() if own}


def cell_of(record: Record, variants: Iterable[str] = ()) -> CellName:
    """(dataset, detector, loss, unit).

    Args:
        variants: settings of the data set that are part of a unit, such as ``split``.

    Raises:
        ValueError: the record's data set has no such setting.
    """
    settings = record.config.get("dataset", {})
    for name in variants:
        if name not in settings:
            raise ValueError(
                f"the record {record.key} has no dataset.{name}, over which its table repeats cells"
            )
    unit = unit_name({name: settings[name] for name in variants}, record.seed)
    return record.dataset, record.detector, record.loss, unit


def one_per_cell(
    records: Iterable[Record], variants: Mapping[str, Iterable[str]] | None = None
) -> dict[CellName, Record]:
    """The record of each cell. A finished record is preferred to failed ones.

    Args:
        records: in any order.
        variants: names of the settings that make a unit, by data set; None: seeds alone.

    Raises:
        ValueError: a cell has finished runs of different configurations.
    """
    candidates: dict[CellName, list[Record]] = defaultdict(list)
    for record in records:
        candidates[cell_of(record, (variants or {}).get(record.dataset, ()))].append(record)
    chosen = {}
    for cell, found in sorted(candidates.items()):
        finished = [record for record in found if record.status == FINISHED]
        if any(asdict(record) != asdict(finished[0]) for record in finished[1:]):
            names = ", ".join(sorted({record.key for record in finished}))
            raise ValueError(
                f"cell {cell_name(cell)} has several finished runs ({names}); move those away that do not belong to the table"
            )
        chosen[cell] = (
            finished[0] if finished else min(found, key=lambda record: (record.key, str(record.error)))
        )
    return chosen


def cell_name(cell: CellName) -> str:
    """``dataset/detector/loss/sSEED``, or with the unit instead of the seed."""
    unit = cell[3]
    return "/".join([*cell[:3], unit if isinstance(unit, str) else f"s{unit}"])
