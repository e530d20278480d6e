"""Reads the file of an offline W&B run: the log format of LevelDB, with W&B's protocol buffers as records."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32_768, struct.Struct("<IHB")  # checksum, length, type
FIRST_BYTES = 7  # at the start of the file: W&B's mark and version
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    """All records of a ``.wandb`` file, in order."""
    data, position, parts = path.read_bytes(), FIRST_BYTES, b""
    while position + HEADER.size <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER.size:  # the end of a block is padding
            position += left
            continue
        _, length, kind = HEADER.unpack_from(data, position)
        parts += data[position + HEADER.size : position + HEADER.size + length]
        position += HEADER.size + length
        if kind in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def history(path: Path) -> list[dict]:
    """The logged values by step."""
    return [_items(record.history.item) for record in records(path) if record.HasField("history")]


def summary(path: Path) -> dict:
    """The summary after all its updates."""
    found: dict = {}
    for record in records(path):
        if record.HasField("summary"):
            found |= _items(record.summary.update)
    return found


def config(path: Path) -> dict:
    """The config of the run at its start."""
    (run,) = [record.run for record in records(path) if record.HasField("run")]
    return _items(run.config.update)


def _items(items) -> dict:
    values: dict = {}
    for item in items:
        place, *keys = [item.key] if item.key else item.nested_key
        target = values
        for key in keys:
            target = target.setdefault(place, {})
            place = key
        target[place] = json.loads(item.value_json)
    return values
