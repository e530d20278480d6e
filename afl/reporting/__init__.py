"""Tables, questions, figures and pages from records."""

from afl.reporting.intervals import Estimate, estimate, paired_difference, t_quantile
from afl.reporting.records import load_records
from afl.reporting.server import ServerError, connect, server_records
from afl.reporting.spec import TableSpec
from afl.reporting.table import Table, build_table

__all__ = [
    "Estimate",
    "ServerError",
    "Table",
    "TableSpec",
    "build_table",
    "connect",
    "estimate",
    "load_records",
    "paired_difference",
    "server_records",
    "t_quantile",
]
