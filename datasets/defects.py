"""Two policies for bad records: stop at the first one, or count them and continue without them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Literal

from datasets.errors import DataError, printable

Policy = Literal["error", "skip"]

MAX_EXAMPLES = 5

_log = logging.getLogger(__name__)


@dataclass
class Defect:
    """The number of defects of one kind, and the messages about the first of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


class DefectLog:
    """Counts defects by kind under the policy ``skip``; raises an error at the first one under ``error``."""

    def __init__(self, policy: Policy) -> None:
        if policy not in ("error", "skip"):
            raise DataError(f"policy for bad records must be 'error' or 'skip', not {policy!r}")
        self.policy = policy
        self.defects: dict[str, Defect] = {}

    def report(self, kind: str, message: str, remedy: str) -> None:
        """Record one defect.

        Args:
            kind: short name of this kind of defect.
            message: file, record and field.
            remedy: how to repair it.

        Raises:
            DataError: under the policy ``error``.
        """
        if self.policy == "error":
            raise DataError(f"{message}; {remedy}, or set dataset.policy=skip to leave such records out")
        defect = self.defects.setdefault(kind, Defect())
        defect.count += 1
        if len(defect.examples) < MAX_EXAMPLES:
            defect.examples.append(printable(f"{message}; {remedy}"))


def defect_counts(defects: dict[str, Defect]) -> str:
    """The counts as text, for example ``2 x broken_image, 1 x degenerate_box``."""
    return ", ".join(f"{defect.count} x {kind}" for kind, defect in sorted(defects.items()))


def warn_of_defects(source: str, defects: dict[str, Defect]) -> None:
    """Log one line about the records of ``source`` that were left out, if there are any."""
    if defects:
        _log.warning("%s: bad records left out or repaired: %s", printable(source), defect_counts(defects))
