"""Balanced groups: weights of negatives at objects compared with numbers taken by hand."""

from __future__ import annotations

import pytest
import torch

from afl.losses import BalancedGroups, ElementWeights
from tests.losses.cases import make_info, plain_target

# Groups: two frequent classes, one common class, one rare class.
COUNTS = [1400.0, 1000.0, 87.0, 9.0]
WEIGHTS = ElementWeights(alpha=0.25, gamma=2.0)


def weights_at(positive: list[int], beta: float = 8.0, locations: int = 12) -> dict[int, list[float]]:
    """Weights of all classes by location with an object."""
    target = plain_target(locations, len(COUNTS), positive)
    found = BalancedGroups(make_info(COUNTS), beta=beta)(torch.zeros(locations, len(COUNTS)), target, WEIGHTS)
    return {
        place: found.negative_slot[slot].tolist()
        for place, slot in enumerate(found.slot.tolist())
        if slot >= 0
    }


def test_a_group_without_an_object_in_the_image_is_not_pushed_down():
    """Class 0 at locations 0 and 1: class 1 is of the same group, classes 2 and 3 have no object."""
    assert weights_at([0 * 4 + 0, 1 * 4 + 0]) == {0: [1.0, 1.0, 0.0, 0.0], 1: [1.0, 1.0, 0.0, 0.0]}


def test_a_group_with_objects_is_pushed_down_by_at_most_beta_times_as_many():
    """Nine objects of class 0 and one of class 2: at beta = 3 each of the nine counts a third for class 2."""
    found = weights_at([*(place * 4 for place in range(9)), 9 * 4 + 2], beta=3.0)
    assert found[0] == pytest.approx([1.0, 1.0, 1 / 3, 0.0])
    assert found[9] == pytest.approx([1.0, 1.0, 1.0, 0.0])  # 3 x 9 objects for one: class 0 is pushed in full
