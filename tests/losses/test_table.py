"""Plain negatives from a lookup table, compared with the double-precision reference, and element by element with the formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from afl.losses import ElementWeights, reference, table
from afl.losses.negatives import Eraser
from afl.losses.primitive import weighted_loss
from tests.losses.cases import loss_and_gradient, random_target, random_weights

N = torch.tensor(7.0, dtype=torch.float64)


def case(seed, *, spread=4.0, **options):
    target = random_target(seed, locations=9000, positives=50, scaled=400, **options)
    random = torch.Generator().manual_seed(seed)
    z = spread * torch.randn(target.num_locations, target.num_classes, generator=random)
    return target, z.bfloat16().requires_grad_()


def assert_reference(z, target, weights):
    assert table.serves(z, target, weights, 0.0)
    exact = z.detach().double().requires_grad_()
    loss, gradient = loss_and_gradient(weighted_loss(z, target, weights, N), z)
    expected, slope = loss_and_gradient(reference.weighted_loss(exact, target, weights, N), exact)
    torch.testing.assert_close(loss.double(), expected, rtol=3e-6, atol=0)
    torch.testing.assert_close(gradient.double(), slope, rtol=1.01 * 2**-8 + 1e-6, atol=1e-30)
    return gradient


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.setenv("AFL_TRITON", "off")


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("gate", ["none", "scalar"])
def test_lookup_equals_the_double_precision_reference(gate, gamma):
    target, z = case(0, ignored=True, verified=True)
    assert_reference(z, target, random_weights(0, target, gamma=gamma, gate=gate))


def test_every_value_up_to_80_equals_the_formula():
    target, z = case(1)
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    values = bits[(bits.abs() <= 80).nonzero().squeeze(1)]
    z = values.repeat(-(-z.numel() // len(values)))[: z.numel()].view(z.shape).clone().requires_grad_()
    assert_reference(z, target, random_weights(1, target, gate="scalar"))


@pytest.mark.parametrize("block", [200, 1000, 1 << 15])
@pytest.mark.parametrize("on_host", [True, False])
def test_any_size_of_block_gives_the_same_result(monkeypatch, block, on_host):
    target, z = case(2, ignored=True, verified=True)
    weights = random_weights(2, target, gate="scalar")
    expected = loss_and_gradient(weighted_loss(z, target, weights, N), z)
    monkeypatch.setattr(table, "BLOCK", block)
    monkeypatch.setattr(Eraser, "on_host", on_host)
    loss, gradient = loss_and_gradient(weighted_loss(z, target, weights, N), z)
    torch.testing.assert_close(loss, expected[0], rtol=1e-6, atol=0)
    assert torch.equal(gradient, expected[1])


def test_strided_logits_and_a_loss_without_gradient():
    target, z = case(3)
    weights = random_weights(3, target)
    strided = z.detach().t().contiguous().t().requires_grad_()
    assert not strided.is_contiguous()
    ours, theirs = (loss_and_gradient(weighted_loss(own, target, weights, N), own) for own in (strided, z))
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert weighted_loss(z.detach(), target, weights, N) == ours[0]


def test_a_nan_logit_gives_a_nan_loss():
    target, z = case(4)
    free = torch.ones(z.numel(), dtype=torch.bool)
    free[target.positive[target.is_positive]] = False
    free[target.negative_index[target.negative_index >= 0]] = False
    with torch.no_grad():
        z.view(-1)[int(free.nonzero()[7])] = torch.nan
    loss, gradient = loss_and_gradient(weighted_loss(z, target, random_weights(4, target), N), z)
    assert loss.isnan() and gradient.isnan().sum() == 1


def test_only_maps_without_weights_of_elements_are_looked_up():
    target, z = case(5)
    plain = ElementWeights(alpha=0.25, gamma=2.0)
    assert table.serves(z, target, plain, 0.5)
    ones = torch.ones(target.num_classes)
    for weights in (replace(plain, gamma=2 * ones), replace(plain, negative_class=ones)):
        assert not table.serves(z, target, weights, 0.0)
    assert not table.serves(z, target, plain, ones) and not table.serves(z.float(), target, plain, 0.0)
    assert not table.serves(z[:10], target, plain, 0.0) and not table.serves(z.half(), target, plain, 0.0)
    assert not table.serves(z, replace(target, shift=ones), plain, 0.0)
