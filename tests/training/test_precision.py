"""bfloat16 convolutions on CPUs without bfloat16 kernels, compared with float64 on rounded numbers and with autocast."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from afl.training import precision
from afl.training.precision import network_precision
from detectors import depthwise
from detectors.depthwise import depthwise_conv


@pytest.fixture
def slow_cpu(monkeypatch):
    monkeypatch.setattr(precision, "fast_bfloat16", lambda: False)


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.detach().bfloat16().double().requires_grad_()


@pytest.mark.parametrize(
    "groups, stride, padding, bias", [(1, 1, 1, True), (1, 2, 0, False), (8, 1, 1, False), (2, 2, 1, True)]
)
def test_values_and_gradients_are_those_of_float64_on_rounded_numbers(
    slow_cpu, groups, stride, padding, bias
):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 3, stride, padding, groups=groups, bias=bias)
    x = torch.randn(2, 8, 9, 7, requires_grad=True)
    with network_precision("cpu", torch.bfloat16):
        y = conv(x)
    upstream = torch.randn(y.shape).bfloat16()
    parameters = [x, *conv.parameters()]
    gradients = torch.autograd.grad(y, parameters, upstream)
    exact = [rounded(one) for one in parameters]
    expected = F.conv2d(*exact, stride=stride, padding=padding, groups=groups)
    truth = torch.autograd.grad(expected, exact, upstream.double())
    assert y.dtype == torch.bfloat16
    # Half a unit in the last of bfloat16's eight bits.
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=1e-6)
    for own, reference in zip(gradients, truth, strict=True):
        assert own.dtype == torch.float32
        assert torch.equal(own, own.bfloat16().float())
        torch.testing.assert_close(own.double(), reference, rtol=2**-8, atol=1e-5)


def test_the_network_has_the_types_and_nearly_the_values_of_autocast(monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.Upsample(scale_factor=2),
    )
    x = torch.randn(2, 3, 16, 16)
    found = {}
    for fast in (True, False):
        monkeypatch.setattr(precision, "fast_bfloat16", lambda fast=fast: fast)
        network.zero_grad()
        with network_precision("cpu", torch.bfloat16):
            y = network(x)
        y.float().square().sum().backward()
        found[fast] = [y, *(p.grad.clone() for p in network.parameters())]
    for own, reference in zip(found[False], found[True], strict=True):
        assert own.dtype == reference.dtype
        scale = reference.abs().max().item()
        torch.testing.assert_close(own, reference, rtol=0, atol=0.05 * scale + 1e-3)


def test_depthwise_convolutions_agree_with_autocast(monkeypatch):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 9, 9, requires_grad=True), torch.randn(8, 1, 3, 3, requires_grad=True)
    found = {}
    for fast in (True, False):
        for module in (precision, depthwise):
            monkeypatch.setattr(module, "fast_bfloat16", lambda fast=fast: fast)
        with network_precision("cpu", torch.bfloat16):
            y = depthwise_conv(x, weight, None, 2, 1)
        found[fast] = [y, *torch.autograd.grad(y.float().square().sum(), [x, weight])]
    for own, reference in zip(found[False], found[True], strict=True):
        assert own.dtype == reference.dtype
        torch.testing.assert_close(own, reference, rtol=2**-7, atol=0.02 * reference.abs().max().item())


def test_float32_and_float64_are_left_alone(slow_cpu):
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 5, 5)
    with network_precision("cpu", None):
        assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias))
    with network_precision("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert conv(x).dtype == torch.float32


def test_fast_convolutions_are_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(precision, "fast_bfloat16", lambda: True)
    monkeypatch.setattr(
        precision.WideConvolutions, "__torch_function__", lambda *a, **k: pytest.fail("replaced")
    )
    with network_precision("cpu", torch.bfloat16):
        assert nn.Conv2d(3, 4, 3)(torch.randn(1, 3, 5, 5)).dtype == torch.bfloat16
