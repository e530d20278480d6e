"""The one exception of this package."""

from __future__ import annotations


class DataError(ValueError):
    """A data set is missing, damaged or inconsistent; the message names the file, the record and the
    remedy."""
