"""Stores a record in the summary of a W&B run, so that a table can be built from the server.

The field ``record`` contains the record as JSON text, because W&B would split a nested value into columns and change its numbers. The
config is stored in the W&B run. Figures that no table shows (AP by class, gradient dynamics) are only in the run directory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from afl.tracking.record import Record, record_from

RECORD = "record"
LEFT_OUT = ("config", "per_class", "groups", "gradient_dynamics")


def summary_of_record(record: Record) -> dict[str, str]:
    """The part of a record that is passed to ``Tracker.summary``."""
    kept = {name: value for name, value in asdict(record).items() if name not in LEFT_OUT}
    return {RECORD: json.dumps(kept, allow_nan=False, ensure_ascii=False)}


def record_of_summary(text: str, config: Mapping[str, Any], where: str) -> Record:
    """The record in a summary.

    Args:
        text: the field ``RECORD`` of a summary.
        config: of the W&B run.
        where: name of the run, for messages.

    Raises:
        ValueError: the text is not a record of this schema.
    """
    try:
        kept = json.loads(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: the field {RECORD!r} of its summary is damaged ({error})") from error
    empty: dict[str, dict] = {name: {} for name in LEFT_OUT}
    return record_from({**empty, **kept, "config": dict(config)} if isinstance(kept, dict) else kept, where)
