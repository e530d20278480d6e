"""The contract of map losses: defaults, those of papers, the checks of shapes and options, and links that shift logits."""

from __future__ import annotations

import inspect
import math
from functools import partial

import pytest
import torch

from afl import losses
from afl.losses import ElementCounter, MapLoss
from afl.losses.logit_shift import logit_shift
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


@pytest.mark.parametrize("form", ["adjustment", "balanced", "effective_margin"])
def test_a_map_of_one_class_such_as_objectness_has_no_shift(form):
    """It has no other classes; the balanced form would divide by their number."""
    assert logit_shift(torch.tensor([7.0]), form).tolist() == [0.0]
    assert losses.LogitShift(make_info([7.0]), form=form).shift.tolist() == [0.0]


@pytest.mark.parametrize(
    ("link", "field", "of_class"),
    [
        (partial(losses.LogitShift, tau=0.5), "shift", [0.0, math.log(3 / 5), math.log(1 / 5)]),
        (partial(losses.ClassMargin, margin=1.0), "positive_shift", [-2 * (1 / 5) ** 0.25, -2.0]),
    ],
)
def test_two_links_that_shift_logits_add_their_shifts_and_one_class_has_none(link, field, of_class):
    target = plain_target(2, 3, [0, 5])
    both = losses.ClassificationLoss(make_info(COUNTS), chain={"one": link, "other": link})
    assert getattr(both.prepared(target), field).tolist() == pytest.approx(of_class)
    alone = losses.ClassificationLoss(make_info(COUNTS[:1]), chain={"one": link})
    assert not getattr(alone.prepared(plain_target(2, 1, [1])), field).any()


@pytest.mark.parametrize(
    ("form", "frequent", "rare"),
    [
        ("adjustment", 0.0, math.log(1 / 4)),
        ("balanced", math.log(4), math.log(1 / 4)),
        ("effective_margin", math.log(40 / (7.3313 * 50 - 40)) / 4, math.log(10 / (7.3313 * 50 - 10)) / 4),
    ],
)
def test_tau_is_a_factor_of_the_shift_of_every_form(form, frequent, rare):
    found = losses.LogitShift(make_info([40.0, 10.0]), form=form, tau=0.5).shift
    assert found.tolist() == pytest.approx([frequent / 2, rare / 2])


def test_the_rarest_class_has_the_whole_margin_whatever_its_count():
    """16 times as many instances give half of it."""
    assert losses.ClassMargin(make_info([320.0, 20.0])).margin.tolist() == pytest.approx([1.0, 2.0])


# Numbers from the papers or their official code, as the docstring of each class says.
PUBLISHED = {
    "AdaptiveClassSuppression": {"threshold": 0.7},
    "APLoss": {"delta": 1.0},
    "AsymmetricFocus": {"positive_gamma": 0.0},
    "BalancedGroups": {"bounds": (10.0, 100.0, 1000.0), "beta": 8.0},
    "ClassificationLoss": {"gamma": 2.0},
    "ClassWeights": {"beta": 0.999},
    "DRLoss": {
        "positive_lambda": 1.0, "negative_lambda": 0.1 / math.log(3.5), "sharpness": 6.0, "tau": 4.0, "margin": 0.5, "prior": 0.5,
    },
    "EqualizationV2": {"gamma": 12.0, "mu": 0.8, "alpha": 4.0, "prior": 0.001},
    "EqualizedFocus": {"scale": 8.0},
    "EquilibriumMargin": {"momentum": 0.9},
    "FederatedSampling": {"power": 0.5},
    "FractalCalibration": {"power": 2.0},
    "GradientHarmonizing": {"bins": 30, "momentum": 0.75},
    "HardNegativeMining": {"ratio": 3.0},
    "IouBalancedSampling": {"ratio": 3.0, "minimum": 384, "bins": 3, "max_overlap": 0.4},
    "OnlineHardExampleMining": {"size": 128},
    "PostHocAdjustment": {"tau": 1.0},
    "PrimeSampleAttention": {"k": 2.0, "bias": 0.0},
    "QualityFocalLoss": {"gamma": 2.0, "alpha": -1.0},
    "Seesaw": {"p": 0.8, "q": 2.0, "eps": 0.01},
    "TauNormalization": {"tau": 0.7},
    "VarifocalLoss": {"alpha": 0.75, "gamma": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_ones(name):
    parameters = inspect.signature(getattr(losses, name)).parameters
    assert {key: parameters[key].default for key in PUBLISHED[name]} == PUBLISHED[name]


def test_a_loss_without_a_computation_cannot_be_built():
    with pytest.raises(TypeError, match="compute"):
        MapLoss(make_info(COUNTS))
    assert ElementCounter in CLASSES
