"""The contract of map losses: defaults, and the checks of shapes and options."""

from __future__ import annotations

import pytest
import torch

from afl import losses
from afl.losses import ElementCounter, MapLoss
from tests.losses.cases import make_info, plain_target

COUNTS = [5.0, 3.0, 1.0]
CLASSES = [value for value in vars(losses).values() if isinstance(value, type) and issubclass(value, MapLoss)]

WRONG = {
    losses.AdaptiveClassSuppression: [{"threshold": 1.5}],
    losses.AdaptiveGradient: [{"tau": 0.0}, {"kappa": -1.0}, {"momentum": 1.0}],
    losses.AnchoredGradient: [{"kappa": -1.0}],
    losses.APLoss: [{"delta": 0.0}],
    losses.AsymmetricFocus: [{"positive_gamma": -1.0}],
    losses.BalancedGroups: [{"beta": 0.0}, {"bounds": [100.0, 10.0]}],
    losses.ClassMargin: [{"margin": -1.0}],
    losses.ClassWeights: [{"fade_steps": -1}],
    losses.ClassificationLoss: [{"gamma": -1.0}, {"alpha": 1.5}],
    losses.DRLoss: [{"tau": 0.0}, {"negative_lambda": -1.0}, {"prior": 1.0}],
    losses.Equalization: [{"images": 0.0}],
    losses.EqualizationV2: [{"gamma": 0.0}, {"alpha": -1.0}, {"prior": 1.0}],
    losses.EqualizedFocus: [{"scale": -1.0}],
    losses.EquilibriumMargin: [{"momentum": 1.0}],
    losses.FederatedSampling: [{"size": 0}, {"power": -1.0}],
    losses.FrequencyWeights: [{"power": -1.0}, {"cap": 0.5}],
    losses.GradientBalance: [{"ratio": 0.0}, {"minimum": 0.0}],
    losses.GradientHarmonizing: [{"bins": 0}, {"bins": 257}, {"momentum": 1.0}, {"momentum": -0.1}],
    losses.HardNegativeMining: [{"ratio": -1.0}, {"minimum": -1}],
    losses.IouBalancedSampling: [{"bins": 0}, {"max_overlap": 0.0}, {"ratio": -1.0}],
    losses.LogitShift: [{"form": "another"}, {"tau": -1.0}],
    losses.LossWarmUp: [{"steps": 0}],
    losses.OnlineHardExampleMining: [{"size": 0}],
    losses.PrimeSampleAttention: [{"k": -1.0}, {"bias": 1.5}],
    losses.RelativeCap: [{"rho": 0.0}, {"momentum": 1.0}],
    losses.RepeatFactorSampling: [{"images": 0.0}],
    losses.ScheduledGradient: [{"fade_steps": 0}],
    losses.Seesaw: [{"p": -1.0}, {"q": -1.0}, {"eps": 0.0}],
    losses.VarifocalLoss: [{"alpha": -1.0}, {"gamma": -1.0}],
}


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


@pytest.mark.parametrize(("kind", "options"), [(kind, one) for kind, every in WRONG.items() for one in every])
def test_options_out_of_range_are_named(kind, options):
    with pytest.raises(ValueError, match=rf"\b{next(iter(options))}\b"):
        kind(make_info(COUNTS), **options)


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
