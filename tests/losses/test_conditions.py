"""The conditions that every Adaptive Focal Loss must satisfy, independent of its formula.

The gate A = 1 / (1 + kappa u / tau) bounds single gradients, and the balance bounds the sum over all negatives.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from afl.losses import (
    AdaptiveGradient,
    ClassificationLoss,
    ClassWeights,
    ElementWeights,
    GradientBalance,
    RepeatFactorSampling,
    ScheduledGradient,
    class_balanced_weights,
)
from afl.losses.gradient import focal_gradient, gate
from afl.losses.primitive import gradient_mass, weighted_loss
from tests.losses.cases import loss_and_gradient, make_info, plain_target, random_logits, random_target

COUNTS = [1400.0, 567.0, 87.0, 12.0, 2.0]
ONE = torch.tensor(1.0)


def build(*, alpha=-1.0, gamma=2.0, weights=None, gradient=None, balance=None, counts=None):
    """A loss with the links for which options are given."""
    chain = {}
    if weights is not None:
        chain["weights"] = lambda info: ClassWeights(info, **weights)
    if balance is not None:
        chain["balance"] = lambda info: GradientBalance(info, **balance)
    if gradient is not None:
        chain["gradient"] = lambda info: AdaptiveGradient(info, **gradient)
    return ClassificationLoss(make_info(counts or COUNTS, alpha=alpha), chain=chain, gamma=gamma, alpha=alpha)


def one_hot(target):
    dense = torch.zeros(target.num_locations * target.num_classes, dtype=torch.float64)
    dense[target.positive[target.is_positive]] = 1
    return dense.view(-1, target.num_classes)


@pytest.mark.parametrize("normalize", ["head", "instances", "classes"])
def test_condition_1_beta_zero_and_open_gate_equal_torchvision_focal_loss(normalize):
    target = random_target(1, scaled=0)
    logits = random_logits(1, target)
    assert (class_balanced_weights(torch.tensor(COUNTS), 0.0, normalize) == 1).all()
    loss = build(alpha=0.25, weights={"beta": 0.0, "normalize": normalize}, gradient={"kappa": 0.0})
    expected = loss_and_gradient(torchvision_focal_loss(logits, one_hot(target), reduction="sum"), logits)
    torch.testing.assert_close(
        loss_and_gradient(loss(logits, target, ONE), logits), expected, rtol=1e-6, atol=1e-12
    )


def test_condition_2_gamma_zero_without_alpha_is_class_balanced_cross_entropy():
    target = random_target(2, scaled=0)
    logits = random_logits(2, target)
    y = one_hot(target)
    w = class_balanced_weights(torch.tensor(COUNTS), 0.999, "head", 5.0).double()
    # pos_weight of torch multiplies the positive term of every class.
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, pos_weight=w, reduction="sum")
    loss = build(gamma=0.0, weights={"cap": 5.0})
    torch.testing.assert_close(
        loss_and_gradient(loss(logits, target, ONE), logits),
        loss_and_gradient(expected, logits),
        rtol=1e-6,
        atol=1e-12,
    )


def test_condition_3_gate_is_in_zero_to_one_continuous_and_one_when_open():
    z = torch.linspace(-40, 40, 80001, dtype=torch.float64)
    u = 10.0 * focal_gradient(z, 2.0)
    closed = gate(u, 1.0)
    assert (closed > 0).all() and (closed <= 1).all()
    assert closed.diff().abs().max() < 0.01  # a step of z is 0.001
    assert (gate(u, 0.0) == 1).all()
    strengths = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert gate(u.max(), strengths).diff().abs().max() < 0.02


def test_condition_3_schedule_opens_the_gate_and_keeps_it_open():
    info = make_info(COUNTS)
    link = ScheduledGradient(info, fade_steps=4, kappa=2.0, tau=0.5)
    target, seen = plain_target(1, 5, [0]), []
    for _ in range(6):
        seen.append(link(torch.zeros(1, 5), target, ElementWeights(-1.0, 2.0)).gate.item())
        link.update()
    assert seen == pytest.approx([4, 4 * 0.5625, 4 * 0.25, 4 * 0.0625, 0, 0])


def test_a_chain_has_at_most_one_gate():
    """The second gate would replace the first one. A link that multiplies the weights of positives by its gate does not set one."""

    def chain(**links):
        return ClassificationLoss(make_info(COUNTS), chain=links)

    adaptive = AdaptiveGradient
    scheduled = partial(ScheduledGradient, fade_steps=4)
    on_positives = partial(AdaptiveGradient, negatives=False)
    for links in (
        {"one": adaptive, "two": scheduled},
        {"one": scheduled, "on": on_positives, "two": adaptive},
    ):
        with pytest.raises(ValueError, match="^the links one, two of the chain each set the gate"):
            chain(**links)
    assert list(chain(one=scheduled, two=on_positives).chain) == ["one", "two"]
    repeats = partial(RepeatFactorSampling, images=10.0)
    with pytest.raises(ValueError, match="^the links one, two of the chain each set image_repeats"):
        chain(one=repeats, two=partial(RepeatFactorSampling, images=30.0, count_instances=True))
    assert list(chain(weights=ClassWeights, one=adaptive).chain) == ["weights", "one"]


def test_only_the_ratio_of_kappa_and_tau_has_an_effect_on_the_loss():
    target = random_target(5)
    logits = random_logits(5, target)
    one, two = (build(weights={}, gradient={"kappa": k, "tau": t}) for k, t in ((1.0, 0.5), (4.0, 2.0)))
    for _ in range(3):
        first, second = (loss_and_gradient(loss(logits, target, ONE), logits) for loss in (one, two))
        torch.testing.assert_close(first, second)
        one.update()
        two.update()


def test_condition_3_balance_is_one_if_positives_outweigh_negatives():
    target = plain_target(4, 5, [0, 6, 12])
    logits = torch.full((4, 5), -4.6)
    link = GradientBalance(make_info(COUNTS))
    weights = link(logits, target, ElementWeights(-1.0, 2.0))
    assert (weights.negative_class == 1).all()


def test_condition_3_gate_and_balance_are_constants_for_autograd():
    target = random_target(3)
    logits = random_logits(3, target)
    loss = build(weights={}, gradient={}, balance={})
    _, gated = loss_and_gradient(loss(logits, target, ONE), logits)
    assert not any(value.requires_grad for value in loss.state_dict().values())
    weights = ElementWeights(alpha=loss.alpha, gamma=loss.gamma)
    for link in build(weights={}, balance={}).chain.values():
        weights = link(logits.detach(), target, weights)
    # If gate or balance had a gradient, this would not equal the gate times the ungated gradient.
    _, ungated = loss_and_gradient(weighted_loss(logits, target, weights, ONE), logits)
    torch.testing.assert_close(gated, ungated / (1 + ungated.abs()))


@pytest.mark.parametrize("weight", [1.0, 575.0, 1e4])
def test_condition_4_initial_gradients_stay_below_tau_over_kappa(weight):
    z = torch.linspace(-40, 40, 4001, dtype=torch.float64).view(-1, 1).requires_grad_()
    link = AdaptiveGradient(make_info([1.0]), kappa=2.0, tau=0.6)
    for positive in ([], list(range(len(z)))):
        target = plain_target(len(z), 1, positive)
        weights = ElementWeights(-1.0, 2.0, positive=torch.full((len(positive),), weight))
        weights = replace(weights, negative_location=torch.full((len(z),), weight))
        _, gradient = loss_and_gradient(weighted_loss(z, target, link(z, target, weights), ONE), z)
        assert gradient.abs().max() <= 0.3
        assert gradient.abs().max() > 0.3 * weight / (weight + 2)


def test_condition_4_initial_negatives_do_not_outweigh_positives():
    target = random_target(4, locations=4000, positives=5, scaled=0)
    logits = torch.full((8000, 5), -2.19, dtype=torch.float64).requires_grad_()
    loss = build(weights={"cap": 5.0}, balance={"minimum": 1e-4})
    free = ElementWeights(-1.0, 2.0, positive=loss.chain["weights"].weight[target.positive_class])
    positive, negative = gradient_mass(logits.detach(), target, free)
    assert negative.sum() > 5 * positive.sum()  # the balance has an effect
    _, gradient = loss_and_gradient(loss(logits, target, ONE), logits)
    down = gradient.clamp(min=0).sum()
    assert down <= (positive.sum() + 1e-4 * negative.sum()) * (1 + 1e-6)
    assert down.item() == pytest.approx(positive.sum().item(), rel=1e-5)


def test_fading_balance_acts_on_an_untrained_model_and_not_on_a_mature_one():
    target = random_target(13, locations=4000, positives=5, scaled=0)
    fresh = torch.full((8000, 5), -2.19, dtype=torch.float64).requires_grad_()
    faded, kept, free = (build(balance=b) for b in ({"threshold": 0.5, "momentum": 0.0}, {}, None))
    value, gradient = loss_and_gradient(faded(fresh, target, ONE), fresh)
    torch.testing.assert_close((value, gradient), loss_and_gradient(kept(fresh, target, ONE), fresh))
    assert value < free(fresh, target, ONE)
    faded.update()
    halfway = fresh.detach().clone()
    halfway.view(-1)[target.positive[target.is_positive]] = torch.logit(torch.tensor(1 - 0.745)).double()
    faded(halfway, target, ONE)
    faded.update()  # mean g 0.745: half way from 0.99 to 0.5
    link = faded.chain["balance"]
    bare = GradientBalance(make_info(COUNTS))
    bare.running.copy_(link.running)
    half = link.statistics()["negative_factor"].item()
    assert half == pytest.approx((1 + bare.statistics()["negative_factor"].item()) / 2, abs=1e-6)
    with torch.no_grad():
        halfway.view(-1)[target.positive[target.is_positive]] = 3.0
    faded(halfway, target, ONE)
    faded.update()
    torch.testing.assert_close(
        loss_and_gradient(faded(fresh, target, ONE), fresh),
        loss_and_gradient(free(fresh, target, ONE), fresh),
    )


def test_condition_5_gradient_keeps_the_sign_of_p_minus_y():
    target = random_target(5, locations=200, positives=60)
    logits = random_logits(5, target, spread=10.0)
    loss = build(alpha=0.25, weights={}, gradient={}, balance={})
    _, gradient = loss_and_gradient(loss(logits, target, ONE), logits)
    assert (gradient * (torch.sigmoid(logits) - one_hot(target)) > 0).all()


def test_condition_5_gated_gradient_increases_with_the_ungated_one():
    u = torch.logspace(-12, 5, 2000, dtype=torch.float64)
    assert ((gate(u, 1.0) * u).diff() > 0).all()


def test_condition_5_initial_positives_keep_a_third_of_their_gradient():
    prior = 0.01
    z = torch.full((1, 1), prior, dtype=torch.float64).logit().requires_grad_()
    target = plain_target(1, 1, [0])
    _, free = loss_and_gradient(build(counts=[5.0])(z, target, ONE), z)
    _, gated = loss_and_gradient(build(counts=[5.0], gradient={"kappa": 1.0})(z, target, ONE), z)
    assert (gated / free).item() == pytest.approx(0.49, abs=0.01)


def test_condition_6_mature_model_gets_class_balanced_focal_loss():
    target = random_target(6, positives=20)
    with torch.no_grad():
        logits = random_logits(6, target)
        logits.view(-1)[target.positive[target.is_positive]] = 2.0
    logits.requires_grad_()
    loss, free = (build(alpha=0.25, weights={}, gradient=g) for g in ({"momentum": 0.9}, None))
    for _ in range(60):
        loss(logits, target, ONE)
        loss.update()
    assert loss.chain["gradient"].kappa == 0
    torch.testing.assert_close(
        loss_and_gradient(loss(logits, target, ONE), logits),
        loss_and_gradient(free(logits, target, ONE), logits),
        rtol=1e-6,
        atol=0,
    )


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_a_gate_on_positives_does_not_change_negatives(soft, per_class):
    target = random_target(12, soft=soft)
    logits = random_logits(12, target)
    options = {"kappa": 3.0, "per_class": per_class}
    both, alone, free = (
        loss_and_gradient(build(alpha=0.25, weights={}, gradient=g)(logits, target, ONE), logits)[1].view(-1)
        for g in (options, options | {"negatives": False}, None)
    )
    positive = torch.zeros_like(free, dtype=torch.bool)
    positive[target.positive[target.is_positive]] = True
    torch.testing.assert_close(alone[positive], both[positive])
    assert torch.equal(alone[~positive], free[~positive])
    assert (alone[positive].abs() < free[positive].abs()).all()
    assert (both[~positive].abs() < free[~positive].abs()).all()


@pytest.mark.parametrize("cap", [None, 10.0])
def test_condition_7_instance_normalised_weights_keep_the_mass_of_positives_under_the_cap(cap):
    counts = torch.tensor([50552.0, 1000.0, 50.0, 3.0, 1.0])
    weights = class_balanced_weights(counts, 0.999, "instances", cap)
    assert (counts * weights).sum().item() == pytest.approx(counts.sum().item(), rel=1e-6)
    assert cap is None or weights.max() <= cap


def test_condition_8_batch_without_positives_is_finite_and_changes_no_state():
    full, empty = random_target(8), random_target(8, positives=0)
    logits = random_logits(8, full)
    loss = build(weights={}, gradient={}, balance={})
    loss(logits, full, ONE)
    loss.update()
    before = {name: value.clone() for name, value in loss.state_dict().items() if "steps" not in name}
    held = loss.chain["balance"].statistics()["negative_factor"].item()
    assert held < 1
    used = loss.chain["balance"](logits.detach(), empty, ElementWeights(-1.0, 2.0)).negative_class
    assert used.tolist() == pytest.approx([held] * 5)
    for _ in range(3):
        value, gradient = loss_and_gradient(loss(logits, empty, ONE), logits)
        loss.update()
        assert value.isfinite() and gradient.isfinite().all()
    after = loss.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_condition_8_first_batch_without_positives_does_not_change_negatives():
    target = random_target(9, positives=0)
    logits = random_logits(9, target)
    balanced, free = build(balance={}), build()
    torch.testing.assert_close(balanced(logits, target, ONE), free(logits, target, ONE))


def test_condition_9_loss_is_only_divided_by_the_given_normaliser():
    target = random_target(10)
    logits = random_logits(10, target)
    for options in ({}, {"weights": {}}, {"weights": {}, "gradient": {}}, {"balance": {}, "gradient": {}}):
        loss = build(**options).eval()
        value, gradient = loss_and_gradient(loss(logits, target, ONE), logits)
        eighth, part = loss_and_gradient(loss(logits, target, torch.tensor(8.0)), logits)
        torch.testing.assert_close((8 * eighth, 8 * part), (value, gradient))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_condition_10_half_precision_logits_are_computed_in_single_precision(dtype):
    target = random_target(11)
    half = random_logits(11, target, spread=20.0).detach().to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    results = []
    for logits in (half, single):
        loss = build(alpha=0.25, weights={}, gradient={}, balance={})
        results.append(loss_and_gradient(loss(logits, target, torch.tensor(4.0)), logits))
        loss.update()
        results[-1] += (loss.chain["gradient"].maturity.ghat, loss.chain["balance"].running)
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1].to(dtype))
    assert torch.equal(results[0][2], results[1][2]) and torch.equal(results[0][3], results[1][3])
