"""From a folder of runs to the one record of each cell."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from afl.tracking.record import FINISHED, Record, read_record

log = logging.getLogger(__name__)

CellName = tuple[str, str, str, int]


def load_records(source: str | Path | Iterable[str | Path]) -> list[Record]:
    """All records of a folder, or of given files and folders, ordered by path.

    Args:
        source: a folder, searched for ``record.json`` at any depth, or several folders and record files.

    Returns:
        The whole ones. A damaged file is named in a warning and left out: its cell shows as missing, and the
        other cells are still worth a table.

    Raises:
        FileNotFoundError: ``source`` names something that is not there.
    """
    paths: list[Path] = []
    for place in [source] if isinstance(source, str | Path) else source:
        place = Path(place)
        if not place.exists():
            raise FileNotFoundError(f"{place} is not there; records are looked for in folders of runs")
        paths += sorted(place.rglob("record.json")) if place.is_dir() else [place]
    records = []
    for path in paths:
        try:
            records.append(read_record(path))
        except (ValueError, OSError) as error:
            log.warning("left out of the table: %s", error)
    return records


def cell_of(record: Record) -> CellName:
    """(dataset, detector, loss, seed)."""
    return record.dataset, record.detector, record.loss, record.seed


def one_per_cell(records: Iterable[Record], keys: Sequence[str] | None) -> dict[CellName, Record]:
    """The record of each cell; a finished one counts before failed ones.

    Args:
        records: in any order.
        keys: run keys that belong to the table; None: all.

    Raises:
        ValueError: a cell has finished runs of different configurations.
    """
    candidates: dict[CellName, list[Record]] = defaultdict(list)
    for record in records:
        if keys is None or record.key in keys:
            candidates[cell_of(record)].append(record)
    chosen = {}
    for cell, found in sorted(candidates.items()):
        finished = [record for record in found if record.status == FINISHED]
        if any(asdict(record) != asdict(finished[0]) for record in finished[1:]):
            names = ", ".join(sorted({record.key for record in finished}))
            raise ValueError(
                f"cell {cell_name(cell)} has several finished runs ({names}); "
                "say which keys belong to the table, or move the others away"
            )
        chosen[cell] = (
            finished[0] if finished else min(found, key=lambda record: (record.key, str(record.error)))
        )
    return chosen


def cell_name(cell: CellName) -> str:
    """``dataset/detector/loss/sSEED``."""
    return "/".join([*cell[:3], f"s{cell[3]}"])
