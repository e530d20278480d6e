"""The contract of map losses: defaults, and the check of shapes."""

from __future__ import annotations

import pytest
import torch

from afl import losses
from afl.losses import ElementCounter, MapLoss
from tests.losses.cases import make_info, plain_target

COUNTS = [5.0, 3.0, 1.0]
CLASSES = [value for value in vars(losses).values() if isinstance(value, type) and issubclass(value, MapLoss)]


class Sum(MapLoss):
    """The smallest implementation of a loss."""

    def compute(self, logits, target, normalizer, localization):
        return logits.sum() / normalizer


def test_a_loss_with_only_compute_has_all_defaults():
    loss = Sum(make_info(COUNTS, prior=0.02))
    assert loss(torch.ones(4, 3), plain_target(4, 3, []), torch.tensor(6.0)) == 2.0
    loss.update()
    assert loss.statistics() == {} and loss.seen is None and loss.score_threshold is None
    assert not loss.uses_overlap and not loss.wants_prior and loss.prior_from_data(1.0, 100.0) == 0.02


@pytest.mark.parametrize("kind", [*(own for own in CLASSES if own is not MapLoss), Sum])
@pytest.mark.parametrize(
    ("shape", "locations", "classes"), [((4, 3), 5, 3), ((4, 3), 4, 2), ((4, 2), 4, 2), ((12,), 4, 3)]
)
def test_every_loss_rejects_wrong_shapes(kind, shape, locations, classes):
    loss = kind(make_info(COUNTS, name="heat"))
    with pytest.raises(ValueError, match=r"Map 'heat': .* a loss built for 3 classes do not fit"):
        loss(torch.zeros(shape), plain_target(locations, classes, [0]), torch.tensor(1.0))


def test_a_loss_without_a_computation_cannot_be_built():
    with pytest.raises(TypeError, match="compute"):
        MapLoss(make_info(COUNTS))
    assert ElementCounter in CLASSES
