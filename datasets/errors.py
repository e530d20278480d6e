"""The one exception of this package."""

from __future__ import annotations


class DataError(ValueError):
    """A data set is missing, damaged or inconsistent; the message says where, and what would help."""
