"""Durations: ``600steps``, ``12epochs``, ``20000images``, ``25percent``, or a sum such as ``600steps+12epochs``."""

from __future__ import annotations

import re
from dataclasses import dataclass

UNITS = ("steps", "epochs", "images", "percent")
_PATTERN = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([a-z%]+)\s*")
_SYNONYMS = {"step": "steps", "epoch": "epochs", "image": "images", "%": "percent"}


@dataclass(frozen=True)
class Duration:
    """An amount in one of ``UNITS``.

    Attributes:
        more: a second duration that is added to this one.
    """

    amount: float
    unit: str
    more: Duration | None = None

    @classmethod
    def parse(cls, text: str | int) -> Duration:
        """Read ``"12epochs"``, ``"1.5 epochs"``, ``"600steps+12epochs"`` and so on.

        Raises:
            ValueError: the text is not a duration, for example because a number has no unit.
        """
        first, plus, rest = str(text).partition("+")
        found = _PATTERN.fullmatch(first)
        unit = _SYNONYMS.get(found[2], found[2]) if found else None
        if unit not in UNITS:
            raise ValueError(
                f"{text!r} is not a duration; write a number and one of {', '.join(UNITS)}: 600steps"
            )
        return cls(float(found[1]), unit, cls.parse(rest) if plus else None)

    def in_steps(self, *, images_per_epoch: int, batch_size: int, total_steps: int | None = None) -> int:
        """The duration in optimiser steps, rounded to the nearest integer, at least 1 for a positive amount.

        Args:
            images_per_epoch: images in one pass over the training set.
            batch_size: images per optimiser step, over all processes.
            total_steps: length of training, needed only for ``percent``.

        Raises:
            ValueError: the unit is ``percent``, and ``total_steps`` is None.
        """
        if self.unit == "steps":
            steps = self.amount
        elif self.unit == "epochs":
            steps = self.amount * images_per_epoch / batch_size
        elif self.unit == "images":
            steps = self.amount / batch_size
        elif total_steps is None:
            raise ValueError(
                f"{self.amount:g}percent is relative to the length of training, which itself needs another unit"
            )
        else:
            steps = self.amount / 100 * total_steps
        if self.more is not None:
            steps += self.more.in_steps(
                images_per_epoch=images_per_epoch, batch_size=batch_size, total_steps=total_steps
            )
        return max(1, round(steps)) if steps > 0 else 0
