"""Errors of a loss that is not defined on a map."""

from __future__ import annotations

from torch import Tensor

from afl.losses.target import ClassificationTarget


class UndefinedPair(ValueError):
    """A loss that is not defined on a detector's map; the message gives the reason in one line."""


def required_overlap(target: ClassificationTarget, method: str, name: str) -> Tensor:
    """(P,) IoU of the box decoded at every positive with its object.

    Raises:
        UndefinedPair: if the head of the map ``name`` has no box at its positives.
    """
    if target.overlap is None:
        raise UndefinedPair(
            f"{method} needs the IoU of a predicted box with its object at every positive, and the head of "
            f"the map {name!r} predicts no box there (one corner or extreme point spans none)."
        )
    return target.overlap
