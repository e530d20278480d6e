"""Tables from records."""

from afl.reporting.intervals import Estimate, estimate, paired_difference, t_quantile
from afl.reporting.records import load_records
from afl.reporting.table import Table, TableSpec, build_table

__all__ = [
    "Estimate",
    "Table",
    "TableSpec",
    "build_table",
    "estimate",
    "load_records",
    "paired_difference",
    "t_quantile",
]
