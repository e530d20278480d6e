"""The fused sum compared with the dense reference by autograd and with finite differences, and its memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afl.losses import ElementWeights, negatives, primitive, reference
from afl.losses.gradient import negative_log_block
from afl.losses.primitive import gradient_mass, weighted_loss
from tests.losses.cases import (
    SEEDS,
    TARGETS,
    WEIGHTS,
    loss_and_gradient,
    plain_target,
    random_logits,
    random_target,
    random_weights,
)

NORMALIZER = torch.tensor(7.0, dtype=torch.float64)


def assert_equals_reference(logits, target, weights):
    expected = loss_and_gradient(reference.weighted_loss(logits, target, weights, NORMALIZER), logits)
    actual = loss_and_gradient(weighted_loss(logits, target, weights, NORMALIZER), logits)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(
    seed=SEEDS,
    options=st.fixed_dictionaries(TARGETS | {"classes": st.sampled_from([1, 5]), "shifted": st.booleans()}),
    weights=st.fixed_dictionaries(WEIGHTS),
)
def test_fused_equals_dense_reference_on_random_targets(seed, options, weights):
    target = random_target(seed, **options)
    assert_equals_reference(random_logits(seed, target), target, random_weights(seed, target, **weights))


@pytest.mark.parametrize("block", [1, 7, 5 * 13, 1 << 20])
def test_fused_equals_dense_reference_for_every_size_of_block(monkeypatch, block):
    monkeypatch.setattr(negatives, "BLOCK", block)
    target = random_target(3, ignored=True, verified=True, scaled=40, positives=20, shifted=True)
    weights = random_weights(3, target, gate="class", negatives=True, slots=True)
    assert_equals_reference(random_logits(3, target), target, weights)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_an_open_gate_is_bit_identical_to_no_gate_and_has_no_cost(monkeypatch, dtype):
    monkeypatch.setenv("AFL_TRITON", "off")
    monkeypatch.setattr(negatives, "BLOCK", 64)
    target = random_target(5, ignored=True, scaled=20)
    free = random_weights(5, target, negatives=True)
    logits = random_logits(5, target).detach().to(dtype).requires_grad_()
    expected = loss_and_gradient(weighted_loss(logits, target, free, NORMALIZER), logits)

    def of_block(*_, **__):
        raise AssertionError("the gate of a block of negatives was computed although it is open")

    monkeypatch.setattr(primitive, "inverse_gate", of_block)
    gated = replace(free, gate=torch.zeros((), dtype=torch.float64))
    actual = loss_and_gradient(weighted_loss(logits, target, gated, NORMALIZER), logits)
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_path_without_host_synchronisation_equals_dense_reference(monkeypatch, block):
    """On an accelerator the host does not count the exceptions of a block; this test runs the same code."""
    monkeypatch.setattr(negatives, "BLOCK", block)
    monkeypatch.setattr(negatives.Eraser, "on_host", False)
    target = random_target(4, ignored=True, verified=True, scaled=40, positives=20, shifted=True)
    weights = random_weights(4, target, gate="scalar", negatives=True, slots=True)
    assert_equals_reference(random_logits(4, target), target, weights)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("soft", [False, True])
def test_gradient_passes_gradcheck_without_gate(gamma, soft):
    target = random_target(5, locations=6, soft=soft, ignored=True, verified=True)
    weights = random_weights(5, target, gamma=gamma, negatives=True)
    logits = random_logits(5, target)
    assert torch.autograd.gradcheck(lambda z: weighted_loss(z, target, weights, NORMALIZER), logits)


def test_gated_gradient_is_gate_times_finite_difference_of_the_ungated_loss():
    target = random_target(6, locations=4, scaled=8)
    weights = random_weights(6, target, gate="scalar")
    free = replace(weights, gate=None, alpha=-1.0)
    logits = random_logits(6, target)
    _, gradient = loss_and_gradient(weighted_loss(logits, target, weights, NORMALIZER), logits)
    step, one = 1e-6, torch.ones((), dtype=torch.float64)
    with torch.no_grad():
        for index in range(logits.numel()):
            shift = torch.zeros_like(logits)
            shift.view(-1)[index] = step
            up, down = (weighted_loss(logits + s * shift, target, free, one) for s in (1, -1))
            u = (up - down) / (2 * step)
            alpha = 0.25 if index in target.positive.tolist() else 0.75
            expected = alpha * u / (1 + weights.gate * u.abs()) / NORMALIZER
            assert gradient.view(-1)[index].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_equals_double_precision_reference_up_to_80(dtype):
    target = random_target(7, locations=40, ignored=True, verified=True, soft=False)
    weights = random_weights(7, target, gate="scalar", negatives=True)
    z = torch.linspace(-80, 80, target.num_locations * target.num_classes).view(-1, target.num_classes)
    low = z.to(dtype).requires_grad_()
    double = low.detach().double().requires_grad_()
    loss, gradient = loss_and_gradient(weighted_loss(low, target, weights, NORMALIZER), low)
    expected, slope = loss_and_gradient(reference.weighted_loss(double, target, weights, NORMALIZER), double)
    assert loss.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    rounding = {torch.float32: 5e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[dtype]
    smallest = 1e-7 if dtype == torch.float16 else 1e-30
    torch.testing.assert_close(gradient.double(), slope, rtol=rounding, atol=smallest)


@pytest.mark.parametrize(("low", "high"), [(-80, -10), (-10, 0), (-3, 1), (-3, 1.5), (0, 80)])
def test_negative_log_of_a_block_equals_double_precision(low, high):
    """Logits below and above the largest one for the shorter formula."""
    x = torch.linspace(low, high, 20_001)
    found = negative_log_block(x, torch.sigmoid(x), x.amax().item(), torch.empty_like(x))
    expected = torch.nn.functional.softplus(x.double(), threshold=100)
    torch.testing.assert_close(found.double(), expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("value", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("z", [-300.0, -80.0, 0.0, 80.0, 300.0])
def test_extreme_logits_stay_finite_and_misses_keep_their_gradient(gamma, value, z):
    target = plain_target(2, 1, [0], value=None if value is None else torch.tensor([value]))
    logits = torch.full((2, 1), z, requires_grad=True)
    weights = ElementWeights(alpha=-1.0, gamma=gamma)
    loss, gradient = loss_and_gradient(weighted_loss(logits, target, weights, torch.tensor(1.0)), logits)
    assert loss.isfinite() and gradient.isfinite().all()
    if z >= 80:  # a negative that is certainly wrong has the full gradient
        assert gradient[1].item() == pytest.approx(1.0)
    if z <= -80 and value in (None, 1.0):  # and so has a positive, for which CornerNet's clamp gives 0
        assert gradient[0].item() == pytest.approx(-1.0)


def test_soft_value_of_one_equals_hard_positive():
    target = random_target(8)
    soft = replace(target, value=torch.ones(len(target.positive)))
    weights = random_weights(8, target, gate="scalar")
    logits = random_logits(8, target)
    hard = loss_and_gradient(weighted_loss(logits, target, weights, NORMALIZER), logits)
    torch.testing.assert_close(
        loss_and_gradient(weighted_loss(logits, soft, weights, NORMALIZER), logits), hard, rtol=1e-12, atol=0
    )


def test_heat_map_with_zero_one_targets_equals_label_path():
    """A list of negatives with scale 1 equals no list."""
    labels = random_target(9, scaled=0)
    negatives = torch.arange(labels.num_locations * labels.num_classes)
    heat = replace(labels, negative_index=negatives, negative_scale=torch.ones(len(negatives)))
    weights = random_weights(9, labels, gate="scalar", negatives=True)
    logits = random_logits(9, labels)
    expected = loss_and_gradient(weighted_loss(logits, labels, weights, NORMALIZER), logits)
    actual = loss_and_gradient(weighted_loss(logits, heat, weights, NORMALIZER), logits)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_map_permuted_from_channels_first_equals_its_contiguous_copy(dtype):
    target = random_target(16, images=1, locations=30, classes=5, ignored=True, verified=True)
    weights = random_weights(16, target, gate="class", negatives=True)
    channels_first = torch.randn(5, 6, 5, dtype=torch.float64).to(dtype).requires_grad_()
    permuted = channels_first.flatten(1).t()
    loss, gradient = loss_and_gradient(weighted_loss(permuted, target, weights, NORMALIZER), channels_first)
    copied = permuted.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    expected, slope = loss_and_gradient(weighted_loss(copied, target, weights, NORMALIZER), copied)
    torch.testing.assert_close((loss, gradient.flatten(1).t()), (expected, slope))


def test_padding_does_not_change_the_loss():
    bare, padded = (random_target(10, padding=0, soft=True), random_target(10, padding=0, soft=True))
    tail = torch.full((4,), -1)
    padded = replace(
        padded,
        positive=torch.cat([tail, bare.positive]),
        value=torch.cat([torch.rand(4), bare.value]),
        negative_index=torch.cat([bare.negative_index, tail]),
        negative_scale=torch.cat([bare.negative_scale, torch.rand(4)]),
    )
    weights = ElementWeights(alpha=0.25, gamma=2.0, gate=torch.tensor(1.0))
    logits = random_logits(10, bare)
    expected = loss_and_gradient(weighted_loss(logits, bare, weights, NORMALIZER), logits)
    actual = loss_and_gradient(weighted_loss(logits, padded, weights, NORMALIZER), logits)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def test_ignored_locations_and_unverified_classes_have_a_gradient_of_exactly_zero():
    target = random_target(11, ignored=True, verified=True, positives=0)
    weights = random_weights(11, target)
    logits = random_logits(11, target)
    _, gradient = loss_and_gradient(weighted_loss(logits, target, weights, NORMALIZER), logits)
    out = target.ignored[:, None] | ~target.verified[target.image]
    assert (gradient[out] == 0).all()
    assert (gradient[~out] > 0).sum() > 0


@pytest.mark.parametrize("locations", [0, 3])
def test_map_without_positives_has_finite_loss(locations):
    target = plain_target(locations, 4, [])
    logits = torch.zeros(locations, 4, requires_grad=True)
    weights = ElementWeights(alpha=-1.0, gamma=2.0)
    loss, gradient = loss_and_gradient(weighted_loss(logits, target, weights, torch.tensor(1.0)), logits)
    assert loss.item() == pytest.approx(locations * 4 * 0.25 * 0.6931472)
    assert gradient.shape == logits.shape


def test_saved_for_backward_is_one_tensor_of_the_logits_size():
    target = random_target(12, scaled=30, ignored=True, verified=True)
    weights = random_weights(12, target, gate="class", negatives=True)
    for dtype in (torch.float32, torch.bfloat16):
        logits = random_logits(12, target).detach().to(dtype).requires_grad_()
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t) or t, lambda t: t):
            weighted_loss(logits, target, weights, NORMALIZER)
        assert [(t.shape, t.dtype) for t in saved] == [(logits.shape, dtype)]


def test_no_gradient_is_kept_if_none_is_required():
    target = random_target(13)
    weights = random_weights(13, target, gate="scalar")
    logits = random_logits(13, target)
    expected = weighted_loss(logits, target, weights, NORMALIZER)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        frozen = weighted_loss(logits.detach(), target, weights, NORMALIZER)
        with torch.no_grad():
            silent = weighted_loss(logits, target, weights, NORMALIZER)
    assert not saved and not frozen.requires_grad and not silent.requires_grad
    assert frozen == silent == expected


def test_every_backward_pass_is_scaled_by_the_upstream_gradient():
    target = random_target(14)
    weights = random_weights(14, target)
    logits = random_logits(14, target)
    loss = weighted_loss(logits, target, weights, NORMALIZER)
    (once,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (thrice,) = torch.autograd.grad(3 * loss, logits, retain_graph=True)
    (again,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(thrice, 3 * once)
    torch.testing.assert_close(again, once)


@pytest.mark.parametrize("soft", [False, True])
def test_gradient_mass_equals_sums_of_the_reference_gradient(soft):
    target = random_target(15, soft=soft, ignored=True, verified=True, scaled=30)
    weights = random_weights(15, target, gate="scalar", negatives=True)
    logits = random_logits(15, target)
    free = replace(weights, gate=None)
    one = torch.ones((), dtype=torch.float64)
    _, gradient = loss_and_gradient(reference.weighted_loss(logits, target, free, one), logits)
    is_positive = torch.zeros(logits.numel(), dtype=torch.bool)
    is_positive[target.positive[target.is_positive]] = True
    size, is_positive = gradient.abs(), is_positive.view_as(logits)
    expected = (size * is_positive).sum(0), (size * ~is_positive).sum(0)
    torch.testing.assert_close(gradient_mass(logits.detach(), target, weights), expected)
    whole = tuple(mass.sum(0, keepdim=True) for mass in expected)
    torch.testing.assert_close(gradient_mass(logits.detach(), target, weights, by_class=False), whole)
