"""DR loss compared with its formula, image by image, differentiated by autograd in double precision."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afl.losses import DRLoss
from tests.losses.cases import SEEDS, TARGETS, loss_and_gradient, make_info, random_logits, random_target

N = torch.tensor(6.0)
LAMBDA = 0.1 / math.log(3.5)


def by_image(logits, target, positive_lambda=1.0, negative_lambda=LAMBDA, sharpness=6.0, tau=4.0, margin=0.5):
    classes = target.num_classes
    high_mass = torch.zeros(logits.numel(), dtype=torch.float64)
    low_mass = torch.ones(logits.numel(), dtype=torch.float64)
    if target.negative_index is not None:
        for e, scale in zip(target.negative_index.tolist(), target.negative_scale.tolist(), strict=True):
            if e >= 0:
                low_mass[e] = scale
    for e in range(logits.numel()):
        row = e // classes
        if target.ignored is not None and target.ignored[row]:
            low_mass[e] = 0
        if target.verified is not None and not target.verified[target.image[row], e % classes]:
            low_mass[e] = 0
    for position, e in enumerate(target.positive.tolist()):
        if e >= 0:
            high_mass[e] = 1 if target.value is None else target.value[position]
            low_mass[e] = 1 - high_mass[e]
    p, total = torch.sigmoid(logits.double()).flatten(), 0.0
    owner = target.image.repeat_interleave(classes)
    for image in range(target.num_images):
        high, low = ((owner == image) & (mass > 0) for mass in (high_mass, low_mass))
        if not high.any() and not low.any():
            continue
        # A factor of the exponential is its logarithm inside the softmax.
        q_low = torch.softmax(p[low] / negative_lambda + low_mass[low].log(), 0)
        q_high = torch.softmax(-p[high] / positive_lambda + high_mass[high].log(), 0)
        p_low = (q_low * p[low]).sum() if low.any() else 0.0
        p_high = (q_high * p[high]).sum() if high.any() else 1.0
        gap = torch.as_tensor(sharpness * (p_low - p_high + margin))
        total = total + tau / sharpness * torch.log1p(torch.exp(gap))
    return total / target.num_images


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, options=st.fixed_dictionaries(TARGETS))
def test_loss_and_gradient_equal_autograd_of_the_formula(seed, options):
    target = random_target(seed, images=3, locations=8, classes=3, **options)
    logits = random_logits(seed, target)
    ours = loss_and_gradient(DRLoss(make_info([1.0] * 3))(logits, target, N), logits)
    torch.testing.assert_close(
        ours, loss_and_gradient(by_image(logits, target), logits), rtol=1e-8, atol=1e-11
    )


def test_options_are_used_in_the_formula():
    options = {"positive_lambda": 0.4, "negative_lambda": 0.2, "sharpness": 3.0, "tau": 2.0, "margin": 0.3}
    target = random_target(1, scaled=20)
    logits = random_logits(1, target)
    ours = loss_and_gradient(DRLoss(make_info([1.0] * 5), **options)(logits, target, N), logits)
    torch.testing.assert_close(ours, loss_and_gradient(by_image(logits, target, **options), logits))


@pytest.mark.parametrize("soft", [False, True])
def test_gradient_passes_gradcheck(soft):
    target = random_target(2, locations=5, classes=3, positives=4, soft=soft, scaled=6, verified=True)
    logits = random_logits(2, target)
    assert torch.autograd.gradcheck(lambda z: DRLoss(make_info([1.0] * 3))(z, target, N), logits)


@pytest.mark.parametrize("block", [1, 20])
def test_every_size_of_block_equals_autograd_of_the_formula(monkeypatch, block):
    monkeypatch.setattr("afl.losses.ranking._BLOCK", block)
    target = random_target(3, ignored=True)
    logits = random_logits(3, target)
    ours = loss_and_gradient(DRLoss(make_info([1.0] * 5))(logits, target, N), logits)
    torch.testing.assert_close(ours, loss_and_gradient(by_image(logits, target), logits))


def test_a_constant_head_has_the_loss_of_a_closed_form():
    """P_- = P_+, so only the margin remains; an image without objects is ranked against 1."""
    logits = torch.zeros(60, 5, requires_grad=True)
    target = random_target(5, scaled=0, positives=0)
    target = replace(target, positive=torch.tensor([0, 7, -1]))
    value, gradient = loss_and_gradient(DRLoss(make_info([1.0] * 5))(logits, target, N), logits)
    one, none = (4 / 6 * math.log(1 + math.exp(6 * gap)) for gap in (0.5, 0.5 - 1 + 0.5))
    assert value.item() == pytest.approx((one + none) / 2)
    # All elements share tau sigmoid(6 gap) p (1 - p) of their image.
    share = 4 / (1 + math.exp(-3)) / 4 / 2
    assert gradient.view(-1)[[0, 7]].tolist() == pytest.approx([-share / 2] * 2)
    assert gradient[:30].clamp(min=0).sum().item() == pytest.approx(share)
    assert gradient[30:].sum().item() == pytest.approx(4 * 0.5 / 4 / 2)


def test_the_normaliser_is_always_the_number_of_images():
    target = random_target(6)
    logits = random_logits(6, target)
    loss = DRLoss(make_info([1.0] * 5))
    assert loss(logits, target, torch.tensor(1.0)) == loss(logits, target, torch.tensor(99.0))
    halves = []
    for start in (0, 30):
        inside = slice(5 * start, 5 * (start + 30))

        def own(index, inside=inside):
            return torch.where((index >= inside.start) & (index < inside.stop), index - inside.start, -1)

        part = replace(
            target,
            image=target.image[:30],
            num_images=1,
            positive=own(target.positive),
            negative_index=own(target.negative_index),
        )
        halves.append(loss(logits[start : start + 30], part, torch.tensor(3.0)))
    torch.testing.assert_close(sum(halves) / 2, loss(logits, target, N))


def test_its_prior_is_always_one_half():
    loss = DRLoss(make_info([1.0]))
    assert loss.wants_prior and loss.prior_from_data(3, 1e6) == 0.5
