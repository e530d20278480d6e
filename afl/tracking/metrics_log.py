"""The curves of a run: one JSON object per line in ``metrics.jsonl``, the truth that W&B mirrors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from datasets.files import write_bytes


class MetricsLog:
    """Appends lines ``{"step": n, ...}``.

    A run that starts again from a checkpoint repeats the steps after it; opening the log cuts them off, and
    with them the half line that a killed process may leave.
    """

    def __init__(self, path: str | Path, resume_step: int = 0) -> None:
        """
        Args:
            path: the file; made if need be.
            resume_step: the checkpoint's step; later lines are dropped. At 0 the log starts anew.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step and self.path.exists():
            kept = [line for line in read_metrics(self.path) if line["step"] <= resume_step]
            write_bytes(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        # line buffered: what a killed run has logged is there
        self._file = open(self.path, "a" if resume_step else "w", buffering=1, encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float | int | str | None]) -> None:
        """Append one line; numbers that are not finite become null.

        Raises:
            OSError: with the path; half a line may be left, which reading passes over.
        """
        line = {"step": int(step)} | {name: _plain(value) for name, value in values.items()}
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OSError(error.errno, f"could not be written ({error.strerror})", str(self.path)) from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict]:
    """All whole lines of a log, in order; an absent file has none.

    Raises:
        ValueError: a line other than the last is not a JSON object with a step.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict) or not isinstance(value.get("step"), int):
                raise ValueError("no step")
        except ValueError as error:
            if number == len(lines):  # the process was killed while writing it
                break
            raise ValueError(f"{path}, line {number} is damaged ({error}); delete the line") from error
        values.append(value)
    return values


def _plain(value: object) -> float | int | str | None:
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
