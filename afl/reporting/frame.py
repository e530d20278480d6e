"""Records as one long table with a row for each figure of each finished run. Every report is a function of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from afl.reporting.records import CellName, cell_of
from afl.tracking import FINISHED, Record, mass_curves

if TYPE_CHECKING:
    import pandas as pd

AVERAGE = "average"
CLASS_AP = "AP of a class"
RUN = ["dataset", "data", "detector", "loss", "unit", "key"]
COLUMNS = [*RUN, "metric", "name", "group", "part", "step", "value"]


def frame(records: Iterable[Record] | Mapping[CellName, Record | None]) -> pd.DataFrame:
    """The long table of the finished runs among ``records``. Undefined figures have no row.

    Args:
        records: or the cells of a table, whose units may be pairs of a data set's variant and a seed.

    Returns:
        Columns: the run (``dataset``, ``data``: its fingerprint, ``detector``, ``loss``, ``unit``: the seed, or the repetition of
        the cell, ``key``), then

        metric: a metric's name in the record, ``CLASS_AP``, or a figure of the gradient dynamics: ``positive`` and
            ``negative`` (sum of |dL/dz| in a logged step, over all maps), ``kappa`` and ``ghat`` of a map.
        name, group: class name and frequency group (r, c, f), if the figure belongs to one; the map's name of ``kappa`` and ``ghat``.
        part, step: number of the part of the training, from 0, and its last step, if the figure belongs to one.
        value: metrics are in [0, 1].
    """
    rows = []
    cells = records.items() if isinstance(records, Mapping) else [(cell_of(one), one) for one in records]
    for (dataset, detector, loss, unit), record in cells:
        if record is not None and record.status == FINISHED:
            run = (dataset, record.data_hash, detector, loss, unit, record.key)
            rows += [(*run, *row) for row in _figures(record) if row[-1] is not None]
    import pandas as pd  # slow to import, and a plan needs no frame

    return pd.DataFrame(rows, columns=COLUMNS)


def _figures(record: Record) -> list[tuple]:
    rows: list[tuple] = [(metric, None, None, None, None, value) for metric, value in record.metrics.items()]
    rows += [
        (CLASS_AP, name, record.groups.get(name), None, None, value)
        for name, value in record.per_class.items()
    ]
    steps = record.gradient_dynamics.get("steps", ())
    for metric, name, group, values in _curves(record.gradient_dynamics):
        rows += [
            (metric, name, group, part, step, value)
            for part, (step, value) in enumerate(zip(steps, values, strict=True))
        ]
    return rows


def _curves(dynamics: Mapping) -> Iterable[tuple[str, str | None, str | None, Iterable[float | None]]]:
    """Metric, map, frequency group and values by part."""
    if not dynamics:
        return
    for name, values in mass_curves(dynamics).items():
        sign, group = name.split("/")
        yield sign, None, group, values
    for name, values in dynamics["curves"].items():
        for metric in ("kappa", "ghat"):
            if name.endswith(f"/adaptive_gradient/{metric}"):
                yield metric, name.split("/")[1], None, values
