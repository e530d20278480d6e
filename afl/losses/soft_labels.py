"""Soft targets: the quality of a positive's localisation instead of 1."""

from __future__ import annotations

from torch import Tensor

from afl.losses.errors import required_overlap
from afl.losses.target import ClassificationTarget


def positive_quality(target: ClassificationTarget, method: str, name: str) -> Tensor:
    """(P,) in [0, 1]: the head's own soft target if it has one, otherwise the IoU of the box at each positive.

    Raises:
        UndefinedPair: if the map ``name`` has neither.
    """
    return required_overlap(target, method, name).clamp(0, 1) if target.value is None else target.value
