"""The curves of a run: one JSON object per line in ``metrics.jsonl``."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from datasets.errors import WriteError
from datasets.files import write_bytes
from datasets.sealed import seal, unseal

log = logging.getLogger(__name__)


class MetricsLog:
    """Appends lines ``{"step": n, ..., "checksum": "..."}``.

    A run that continues from a checkpoint repeats the steps after it. Opening the log removes the lines of these steps, and damaged
    lines, such as the incomplete line of a killed process.
    """

    def __init__(self, path: str | Path, resume_step: int = 0, last_step: int | None = None) -> None:
        """
        Args:
            path: the file; it is created if it does not exist.
            resume_step: the checkpoint's step; later lines are removed. 0 starts an empty log.
            last_step: of the run; the line of its evaluation (``val/...``) is removed, because a run that continues from
                there repeats that evaluation.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step and self.path.exists():
            kept = [line for line in read_metrics(self.path) if _stays(line, resume_step, last_step)]
            write_bytes(self.path, "".join(_sealed(line) for line in kept).encode())
        # Line buffered, so that the file of a killed run is complete.
        self._file = open(self.path, "a" if resume_step else "w", buffering=1, encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float | int | str | None]) -> None:
        """Append one line; numbers that are not finite become null.

        Raises:
            WriteError: the file may have an incomplete line, which ``read_metrics`` skips.
        """
        line = {"step": int(step)} | {name: _plain(value) for name, value in values.items()}
        try:
            self._file.write(_sealed(line))
        except OSError as error:
            raise WriteError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict]:
    """All complete lines of a log, in order, without their checksums; a missing file has none.

    Damaged lines are skipped. A warning names them, except the last line, which may be incomplete after a killed process.
    """
    path = Path(path)
    if not path.exists():
        return []
    # Not splitlines: a text may contain other characters that it takes for line ends.
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    values, damaged = [], []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict) or not _is_number(value.get("step")):
                raise ValueError("no step")
            values.append(unseal(value))
        except (ValueError, RecursionError):
            damaged.append(number)
    if damaged and damaged != [len(lines)]:
        log.warning(
            "%s: line %s damaged and left out",
            path,
            f"{damaged[0]} is" if len(damaged) == 1 else f"{damaged[0]} and {len(damaged) - 1} more are",
        )
    return values


def _stays(line: Mapping[str, object], resume_step: int, last_step: int | None) -> bool:
    if line["step"] != last_step:
        return line["step"] <= resume_step
    return resume_step == last_step and not any(name.startswith("val/") for name in line)


def _sealed(line: Mapping[str, object]) -> str:
    return json.dumps(seal(line)) + "\n"


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: object) -> float | int | str | None:
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
