"""What a loss says of a map that it has no meaning on."""

from __future__ import annotations

from torch import Tensor

from afl.losses.target import ClassificationTarget


class UndefinedPair(ValueError):
    """A loss and a map of a detector that do not go together, with the reason, in one line."""


def required_overlap(target: ClassificationTarget, method: str, name: str) -> Tensor:
    """(P,) IoU of the box decoded at every positive with its object.

    Raises:
        UndefinedPair: where the head of the map ``name`` has no box at its positives.
    """
    if target.overlap is None:
        raise UndefinedPair(
            f"{method} needs the IoU of a predicted box with its object at every positive, and the head of "
            f"the map {name!r} predicts no box there (one corner or extreme point spans none)."
        )
    return target.overlap
