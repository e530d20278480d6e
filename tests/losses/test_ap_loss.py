"""AP loss compared with its definition in loops over pairs, including interpolation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afl.losses import APLoss, ap_loss
from tests.losses.cases import (
    SEEDS,
    TARGETS,
    loss_and_gradient,
    make_info,
    plain_target,
    random_logits,
    random_target,
)

N = torch.tensor(6.0)


def by_pairs(logits, target, delta=1.0, normalizer=6.0):
    """Loss and gradient, pair by pair: each positive and each rival with their masses."""
    z = logits.detach().double().flatten().tolist()
    classes = target.num_classes
    value = [1.0] * len(target.positive) if target.value is None else target.value.tolist()
    positives = {e: v for e, v in zip(target.positive.tolist(), value, strict=True) if e >= 0}
    rivals = {}
    for e in range(len(z)):
        image = target.image[e // classes]
        ignored = target.ignored is not None and target.ignored[e // classes]
        unverified = target.verified is not None and not target.verified[image, e % classes]
        if not ignored and not unverified:
            rivals[e] = 1.0
    if target.negative_index is not None:
        for e, scale in zip(target.negative_index.tolist(), target.negative_scale.tolist(), strict=True):
            if e in rivals:
                rivals[e] = scale
    rivals |= {e: 1.0 - v for e, v in positives.items()}

    def step(x):
        return min(max(x / (2 * delta) + 0.5, 0.0), 1.0)

    gradient, loss, best = [0.0] * len(z), 0.0, 0.0
    for i in sorted(positives, key=lambda e: z[e]):
        right = 1.0 + sum(m * step(z[k] - z[i]) for k, m in positives.items() if k != i)
        ahead = {j: m * step(z[j] - z[i]) for j, m in rivals.items() if j != i}
        precision = right / (right + sum(ahead.values()))
        shrink = 1.0
        if best > precision:
            shrink = (1 - best) / (1 - precision)
        elif positives[i] > 0:
            best = precision
        for j, share in ahead.items():
            term = positives[i] * shrink * share / (right + sum(ahead.values())) / normalizer
            gradient[j] += term
            gradient[i] -= term
            loss += term
    return loss, torch.tensor(gradient, dtype=torch.float64).view(logits.shape)


def assert_equals_pairs(logits, target, rtol=1e-7, atol=1e-10, **options):
    loss = APLoss(make_info([1.0] * target.num_classes), **options)
    value, gradient = loss_and_gradient(loss(logits, target, N), logits)
    expected, slope = by_pairs(logits, target, **options)
    assert value.item() == pytest.approx(expected, rel=rtol, abs=atol)
    torch.testing.assert_close(gradient.double(), slope, rtol=rtol, atol=atol)


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    options=st.fixed_dictionaries(TARGETS),
    delta=st.sampled_from([0.3, 1.0, 2.5]),
    spread=st.sampled_from([0.2, 2.0, 6.0]),
)
def test_loss_and_gradient_equal_loops_over_pairs(seed, options, delta, spread):
    target = random_target(seed, locations=12, classes=3, **options)
    assert_equals_pairs(random_logits(seed, target, spread), target, delta=delta)


@pytest.mark.parametrize("soft", [False, True])
def test_path_without_host_synchronisation_equals_loops_over_pairs(monkeypatch, soft):
    monkeypatch.setattr(ap_loss, "on_host", lambda tensor: False)
    target = random_target(1, locations=12, classes=3, ignored=True, verified=True, soft=soft)
    assert_equals_pairs(random_logits(1, target), target)


@pytest.mark.parametrize("block", [1, 20])
def test_every_size_of_block_equals_loops_over_pairs(monkeypatch, block):
    monkeypatch.setattr("afl.losses.ranking._BLOCK", block)
    target = random_target(2, locations=12, classes=3, ignored=True)
    assert_equals_pairs(random_logits(2, target), target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [80.0, 3.0])
def test_low_precision_logits_equal_loops_over_pairs_in_double(dtype, spread):
    target = random_target(3, locations=20, classes=3, positives=10, ignored=True)
    z = torch.linspace(-spread, spread, 120)[torch.randperm(120, generator=torch.Generator().manual_seed(2))]
    logits = z.view(40, 3).to(dtype).requires_grad_()
    rounding = 1e-6 if dtype == torch.float32 else 2**-8
    assert_equals_pairs(logits, target, rtol=rounding, atol=1e-9)


def test_a_perfect_ranking_has_loss_zero_and_a_reversed_one_almost_one():
    logits = torch.cat([torch.full((4, 1), 3.0), torch.full((96, 1), -3.0)]).requires_grad_()
    target = plain_target(100, 1, [0, 1, 2, 3])
    loss = APLoss(make_info([1.0]))
    value, gradient = loss_and_gradient(loss(logits, target, torch.tensor(4.0)), logits)
    assert value == 0 and (gradient == 0).all()
    value, gradient = loss_and_gradient(loss(-logits, target, torch.tensor(4.0)), logits)
    # Precision of positives that tie is (1 + 3 / 2) / (1 + 3 / 2 + 96).
    assert value.item() == pytest.approx(96 / 98.5)
    assert gradient.abs().sum().item() == pytest.approx(2 * 96 / 98.5)


def test_positives_and_negatives_have_equal_total_gradients_of_at_most_one():
    target = random_target(4, locations=500, positives=30, scaled=100)
    logits = random_logits(4, target)
    positives = target.num_positives().float()
    value, gradient = loss_and_gradient(APLoss(make_info([1.0] * 5))(logits, target, positives), logits)
    assert gradient.clamp(min=0).sum().item() == pytest.approx(value.item())
    assert gradient.clamp(max=0).sum().item() == pytest.approx(-value.item())
    assert 0 < value <= 1


def test_soft_values_of_one_equal_hard_positives():
    target = random_target(5)
    logits = random_logits(5, target)
    soft = replace(target, value=torch.ones(len(target.positive)))
    loss = APLoss(make_info([1.0] * 5))
    torch.testing.assert_close(
        loss_and_gradient(loss(logits, soft, N), logits), loss_and_gradient(loss(logits, target, N), logits)
    )


def test_statistics_give_the_average_precision_of_the_last_batch():
    target = random_target(7, locations=12, classes=3, positives=6)
    logits = random_logits(7, target)
    loss = APLoss(make_info([1.0] * 3))
    assert loss.statistics() == {}
    loss(logits, target, N)
    assert float(loss.statistics()["precision"]) == pytest.approx(1 - by_pairs(logits, target)[0])
