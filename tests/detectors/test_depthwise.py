"""Values and gradients of the depthwise convolution compared with torch's, in double precision and under autocast."""

import pytest
import torch
import torch.nn.functional as F

from detectors import depthwise
from detectors.depthwise import _DepthwiseConv, depthwise_conv

CASES = [
    (3, 1, 1, 7, 6),
    (5, 1, 2, 5, 9),
    (3, 2, 0, 9, 8),
    (5, 2, 0, 11, 12),
    (3, 2, 1, 8, 7),
    (5, 2, 2, 6, 6),
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "height", "width"), CASES)
def test_gradients_equal_those_of_torch(kernel, stride, padding, height, width):
    torch.manual_seed(0)
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    ours = _DepthwiseConv.apply(x, weight, bias, stride, padding)
    theirs = F.conv2d(x, weight, bias, stride, padding, 1, 3)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(theirs)
    for got, want in zip(
        torch.autograd.grad(ours, (x, weight, bias), upstream),
        torch.autograd.grad(theirs, (x, weight, bias), upstream),
        strict=True,
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_frozen_inputs_and_weights_have_no_gradient(monkeypatch, needs, fast):
    monkeypatch.setattr(depthwise, "fast_bfloat16", lambda: fast)
    x = torch.randn(1, 2, 5, 5, dtype=torch.bfloat16, requires_grad=needs[0])
    weight = torch.randn(2, 1, 3, 3, dtype=torch.bfloat16, requires_grad=needs[1])
    depthwise_conv(x, weight, None, 1, 1).sum().backward()
    assert (x.grad is not None, weight.grad is not None) == needs


@pytest.mark.parametrize("fast", [True, False])
def test_autocast_gives_bfloat16_maps_and_gradients_close_to_float32(monkeypatch, fast):
    monkeypatch.setattr(depthwise, "fast_bfloat16", lambda: fast)
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 5, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv(x, weight, None, 1, 2)
    assert y.dtype == torch.bfloat16
    (got,) = torch.autograd.grad(y.float().sum(), weight)
    assert got.dtype == torch.float32
    (want,) = torch.autograd.grad(F.conv2d(x, weight, None, 1, 2, 1, 8).sum(), weight)
    torch.testing.assert_close(got, want, rtol=2e-2, atol=0.5)
