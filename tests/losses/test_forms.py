"""The other forms of Adaptive Focal Loss: their equations with numbers, and their limits."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from afl.losses import AnchoredGradient, ClassificationLoss, ClassWeights, RelativeCap, TemperedClassWeights
from tests.losses.cases import loss_and_gradient, make_info, plain_target, random_logits, random_target

COUNTS = [1400.0, 567.0, 87.0, 12.0, 2.0]
WEIGHTS = partial(ClassWeights, normalize="head", cap=5.0)
N = torch.tensor(6.0)


def build(**chain):
    return ClassificationLoss(make_info(COUNTS), chain=chain, alpha=-1.0)


def size(z: float) -> float:
    """G of a positive of logit z, by differences of (1 - p)^2 (-ln p)."""

    def loss(x):
        p = 1 / (1 + math.exp(-x))
        return (1 - p) ** 2 * -math.log(p)

    return abs(loss(z + 1e-5) - loss(z - 1e-5)) / 2e-5


def factor(loss, z: float, label: int = 4) -> float:
    """The factor of the loss on the gradient of a single positive."""
    logits = torch.full((1, 5), -30.0, dtype=torch.float64)
    logits[0, label] = z
    logits.requires_grad_()
    _, gradient = loss_and_gradient(loss(logits, plain_target(1, 5, [label]), torch.tensor(1.0)), logits)
    return abs(gradient[0, label].item()) / size(z)


def equal(one, other, *, rtol=1e-9, seeds=(0, 1)):
    for seed in seeds:
        target = random_target(seed, ignored=True, soft=bool(seed))
        logits = random_logits(seed, target)
        for ours, theirs in zip(
            loss_and_gradient(one(logits, target, N), logits),
            loss_and_gradient(other(logits, target, N), logits),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-9)


# ---- anchored ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", [-12.0, -3.0, -0.5, 0.7, 2.0, 5.0])
@pytest.mark.parametrize("kappa", [0.3, 1.0, 8.0])
def test_anchored_weight_follows_the_formula_between_focal_and_class_balanced(z, kappa):
    loss = build(weights=WEIGHTS, anchor=partial(AnchoredGradient, kappa=kappa))
    g, found = size(z), factor(loss, z)
    assert found == pytest.approx(5 * (1 + kappa * g) / (1 + kappa * 5 * g), rel=1e-5)
    assert 1 < found < 5
    light = build(
        weights=partial(ClassWeights, normalize="classes", cap=None),
        anchor=partial(AnchoredGradient, kappa=kappa),
    )
    w = light.chain["weights"].weight[0].item()
    assert w < 1 and w < factor(light, z, label=0) < 1


def test_anchored_limits_are_class_balanced_and_plain_focal_loss():
    weighted = build(weights=WEIGHTS)
    equal(build(weights=WEIGHTS, anchor=partial(AnchoredGradient, kappa=0.0)), weighted)
    equal(build(anchor=AnchoredGradient), build())
    equal(build(weights=WEIGHTS, anchor=partial(AnchoredGradient, kappa=1e12)), build(), rtol=1e-4)
    # Easy positives have almost no gradient, so they keep the class weight.
    anchored = build(weights=WEIGHTS, anchor=AnchoredGradient)
    assert factor(anchored, 6.0) == pytest.approx(5.0, rel=1e-3)
    assert factor(anchored, -20.0) == pytest.approx(5 * 2 / 6, rel=1e-4)


def test_anchored_gradients_keep_their_order_of_difficulty_and_their_sign():
    anchored = build(weights=WEIGHTS, anchor=partial(AnchoredGradient, kappa=3.0))
    points = torch.linspace(0.0, 8.0, 50).tolist()
    pushes = [factor(anchored, z) * size(z) for z in points]
    assert all(easy < hard for hard, easy in zip(pushes, pushes[1:], strict=False))
    target = random_target(3)
    logits = random_logits(3, target)
    _, gradient = loss_and_gradient(anchored(logits, target, N), logits)
    assert (gradient.view(-1)[target.positive[target.is_positive]] < 0).all()


# ---- tempered ---------------------------------------------------------------------------------------------------------------


def test_tempered_weights_start_as_focal_loss_and_end_as_class_balanced():
    tempered = build(weights=partial(TemperedClassWeights, normalize="head", cap=5.0))
    equal(tempered.eval(), build())
    tempered.chain["weights"].maturity.ghat[:2] = 0.4
    assert tempered.chain["weights"].power == 1.0
    equal(tempered, build(weights=WEIGHTS))


def test_power_follows_the_most_mature_quarter_of_the_classes_with_instances():
    link = TemperedClassWeights(make_info([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 0.0], prior=0.1))
    assert link.quarter == 2
    link.maturity.ghat.copy_(torch.tensor([0.9, 0.6, 0.9, 0.7, 0.9, 0.9, 0.9, 0.9, 0.9]))
    assert link.power.item() == pytest.approx(1 - (0.25 + 0.5) / 2)
    # The other classes have no effect until they are among the most mature.
    link.maturity.ghat[0] = 0.8
    assert link.power.item() == pytest.approx(1 - (0.25 + 0.5) / 2)
    link.maturity.ghat[2] = 0.2
    assert link.power.item() == pytest.approx(1 - (0.0 + 0.25) / 2)


def test_power_stays_in_the_unit_interval_and_one_class_is_not_changed():
    link = TemperedClassWeights(make_info([9.0, 1.0]))
    for ghat in (0.0, 0.5, 0.99, 1.0):
        link.maturity.ghat.fill_(ghat)
        assert 0 <= link.power <= 1
    lonely = ClassificationLoss(make_info([7.0]), chain={"weights": TemperedClassWeights})
    lonely.chain["weights"].maturity.ghat.fill_(0.1)
    target = plain_target(3, 1, [1])
    logits = random_logits(0, target)
    plain = ClassificationLoss(make_info([7.0]))
    assert lonely(logits, target, N) == plain(logits, target, N)


def test_weights_of_a_step_depend_on_previous_steps():
    loss = build(weights=partial(TemperedClassWeights, momentum=0.0))
    target = plain_target(1, 5, [0, 1])
    logits = torch.full((1, 5), 3.0, dtype=torch.float64, requires_grad=True)
    first = loss(logits, target, N)
    assert loss.chain["weights"].power == 0
    loss.update()
    assert loss.chain["weights"].power == 1 and loss(logits, target, N) != first


# ---- relative cap -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", [-12.0, -3.0, -0.5, 0.7, 2.0])
@pytest.mark.parametrize("ghat", [0.99, 0.8, 0.6])
def test_the_cap_follows_the_formula(z, ghat):
    loss = build(weights=WEIGHTS, cap=partial(RelativeCap, rho=0.8)).eval()
    loss.chain["cap"].maturity.ghat.fill_(ghat)
    loss.chain["cap"].size.fill_(0.7)
    limit = 0.8 / ((ghat - 0.5) / 0.49) * 0.7
    assert factor(loss, z) == pytest.approx(min(5.0, limit / size(z)), rel=1e-5)


def test_an_untrained_head_limits_positives_to_the_average_gradient_of_focal_loss():
    loss = build(weights=partial(ClassWeights, normalize="head", cap=None), cap=RelativeCap).eval()
    average = size(math.log(0.01 / 0.99))
    for z in torch.linspace(-20, 8, 57).tolist():
        push = factor(loss, z) * size(z)
        assert push <= average * (1 + 1e-5)
    assert loss.statistics()["cap/mean_size"].item() == pytest.approx(average, rel=1e-5)


def test_the_cap_rises_as_positives_are_learned_and_does_not_raise_weights():
    loss = build(weights=WEIGHTS, cap=RelativeCap).eval()
    loss.chain["cap"].maturity.ghat.fill_(0.5)
    equal(loss, build(weights=WEIGHTS))
    far = build(weights=WEIGHTS, cap=partial(RelativeCap, rho=1e9)).eval()
    equal(far, build(weights=WEIGHTS))
    before = 0.0
    for ghat in (0.99, 0.9, 0.8, 0.7, 0.6, 0.55, 0.5):
        loss.chain["cap"].maturity.ghat.fill_(ghat)
        now = factor(loss, -3.0)
        assert before <= now <= 5.0 * (1 + 1e-6)
        before = now


def test_mean_size_is_that_of_the_unweighted_gradient_over_all_micro_batches():
    loss = build(weights=WEIGHTS, cap=partial(RelativeCap, momentum=0.5))
    start, seen = size(math.log(0.01 / 0.99)), []
    for z, labels in ((-2.0, [4]), (1.0, [0, 3])):
        logits = torch.full((1, 5), z, dtype=torch.float64, requires_grad=True)
        loss(logits, plain_target(1, 5, [*labels, -1]), N)
        seen += [size(z)] * len(labels)
    loss.update()
    expected = 0.5 * start + 0.5 * sum(seen) / len(seen)
    assert loss.statistics()["cap/mean_size"].item() == pytest.approx(expected, rel=1e-5)
    loss(torch.zeros(1, 5), plain_target(1, 5, []), N)
    loss.update()
    assert loss.statistics()["cap/mean_size"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", [AnchoredGradient, RelativeCap, TemperedClassWeights])
def test_maps_without_positives_have_focal_loss(form):
    target = random_target(0, positives=0)
    logits = random_logits(0, target)
    with_form, plain = build(form=form), build()
    assert with_form(logits, target, N) == plain(logits, target, N)
    with_form.update()
    assert all(torch.as_tensor(number).isfinite().all() for number in with_form.statistics().values())
