"""Tables, questions, figures and pages from records."""

from afl.reporting.records import load_records
from afl.reporting.server import ServerError, connect, server_records
from afl.reporting.spec import TableSpec
from afl.reporting.table import Table, build_table

__all__ = ["ServerError", "Table", "TableSpec", "build_table", "connect", "load_records", "server_records"]
