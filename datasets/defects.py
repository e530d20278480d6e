"""What is done about bad records: stop at the first one, or count them and go on without them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Literal

from datasets.errors import DataError

Policy = Literal["error", "skip"]

MAX_EXAMPLES = 5

_log = logging.getLogger(__name__)


@dataclass
class Defect:
    """How often one kind of defect was found, and the messages of its first occurrences."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


class DefectLog:
    """Counts defects by kind under the policy ``skip``, raises at the first one under ``error``."""

    def __init__(self, policy: Policy) -> None:
        if policy not in ("error", "skip"):
            raise DataError(f"policy for bad records must be 'error' or 'skip', not {policy!r}")
        self.policy = policy
        self.defects: dict[str, Defect] = {}

    def report(self, kind: str, message: str, remedy: str) -> None:
        """Note one defect.

        Args:
            kind: short name it is counted under.
            message: file, record and field.
            remedy: what would repair it.

        Raises:
            DataError: under the policy ``error``.
        """
        if self.policy == "error":
            raise DataError(f"{message}; {remedy}, or set the policy to 'skip' to leave such records out")
        defect = self.defects.setdefault(kind, Defect())
        defect.count += 1
        if len(defect.examples) < MAX_EXAMPLES:
            defect.examples.append(message)


def warn_of_defects(source: str, defects: dict[str, Defect]) -> None:
    """One log line that says what was left out of ``source``, if anything."""
    if defects:
        counts = ", ".join(f"{defect.count} x {kind}" for kind, defect in sorted(defects.items()))
        _log.warning("%s: bad records left out or repaired: %s", source, counts)
