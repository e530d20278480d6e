"""Gradients of half-precision logits under any upstream factor, empty inputs, and second derivatives."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.ops import sigmoid_focal_loss as torchvision_loss

from afl.losses import (
    APLoss,
    ClassificationLoss,
    DRLoss,
    adaptive_focal_loss,
    class_balanced_focal_loss,
    sigmoid_focal_loss,
)
from tests.losses.cases import make_info, random_logits, random_target

WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 4.0, 5.0])
PUBLIC = {
    "fl": sigmoid_focal_loss,
    "cbfl": partial(class_balanced_focal_loss, class_weights=WEIGHTS),
    "afl": partial(adaptive_focal_loss, class_weights=WEIGHTS),
}
MAPS = {"fl": ClassificationLoss, "ap": APLoss, "dr": DRLoss}
HALF = [torch.bfloat16, torch.float16]
# Half a unit in the last place, once for the stored bfloat16 gradient and once for the product.
ROUNDING = {torch.bfloat16: 2 * 2**-8, torch.float16: 2**-11}
# float16 has gaps of 2^-24 below 2^-14.
GAP = {torch.bfloat16: 0.0, torch.float16: 2**-25}


def dense_case(dtype: torch.dtype, rows: int = 400):
    random = torch.Generator().manual_seed(0)
    z = (2 * torch.randn(rows, 5, generator=random) - 2).to(dtype)
    y = (torch.rand(rows, 5, generator=random) < 0.1).to(dtype)
    return z, y


def close(found: torch.Tensor, exact: torch.Tensor) -> None:
    dtype = found.dtype
    torch.testing.assert_close(
        found.double(), exact, rtol=1.01 * ROUNDING[dtype] + 1e-5, atol=GAP[dtype] * 1.01 + 1e-30
    )


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("factor", [1 / 3, 1.003, 1e-3, 777.0])
@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_the_upstream_factor_is_applied_in_single_precision(name, reduction, factor, dtype):
    z, y = dense_case(dtype)
    upstream = torch.tensor(factor)
    low, exact = z.clone().requires_grad_(), z.double().requires_grad_()
    for logits in (low, exact):
        loss = PUBLIC[name](logits, y.to(logits.dtype), reduction=reduction)
        (upstream * loss).sum().backward()
    close(low.grad, exact.grad)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_the_losses_of_maps_apply_the_factor_in_single_precision(name, soft, dtype):
    target = random_target(0, soft=soft)
    z = random_logits(0, target).detach().to(dtype)
    loss = MAPS[name](make_info([9.0] * 5))
    low, exact = z.clone().requires_grad_(), z.double().requires_grad_()
    for logits in (low, exact):
        (loss(logits, target, torch.tensor(7.0)) * 777.7).backward()
    # Soft positives are summed twice, as positives and as rivals.
    twice = 2 if soft else 1
    torch.testing.assert_close(
        low.grad.double(),
        exact.grad,
        rtol=3 * twice * ROUNDING[dtype],
        atol=1e-2 * ROUNDING[dtype] + GAP[dtype],
    )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", PUBLIC)
def test_a_gradient_scaler_gives_the_gradients_of_single_precision(name, reduction):
    """The factor of 65,536 is not a float16 number, and without it most gradients of a mean underflow."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    z, y = dense_case(torch.float16)
    z = z * (1.0 if reduction == "mean" else 1e-3)
    parameter = nn.Parameter(z.float())
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    share = 1.0 if reduction == "mean" else 0.9
    scaler.scale(share * PUBLIC[name](parameter.half(), y, reduction=reduction)).backward()
    assert parameter.grad.isfinite().all()
    scaler.unscale_(optimizer)
    exact = z.double().requires_grad_()
    (share * PUBLIC[name](exact, y.double(), reduction=reduction)).backward()
    torch.testing.assert_close(parameter.grad.double(), exact.grad, rtol=2**-10, atol=2**-40)
    underflow = (exact.grad.half() == 0).float().mean()
    assert reduction == "sum" or underflow > 0.2 and (parameter.grad == 0).float().mean() < 0.1 * underflow
    before = parameter.detach().clone()
    scaler.step(optimizer)
    assert not torch.equal(before, parameter)


@pytest.mark.parametrize("shape", [(0,), (7, 0), (0, 5), (3, 0, 5), ()])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_empty_inputs_have_an_empty_loss_and_a_sum_and_mean_of_zero(shape, reduction):
    logits = torch.zeros(shape, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.zeros(shape), reduction=reduction)
    loss.sum().backward()
    assert logits.grad.shape == shape
    if reduction == "none":
        assert loss.shape == shape
    elif logits.numel():
        torch.testing.assert_close(loss, torchvision_loss(logits, torch.zeros(shape), reduction=reduction))
    else:
        assert loss.shape == () and loss == 0


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5)])
def test_empty_inputs_with_class_weights(shape):
    for name in ("cbfl", "afl"):
        for reduction in ("sum", "mean"):
            assert PUBLIC[name](torch.zeros(shape), torch.zeros(shape), reduction=reduction) == 0


@pytest.mark.parametrize("own", [True, False], ids=["public", "map"])
def test_a_second_derivative_gives_an_error_with_the_reason(own):
    target = random_target(0)
    logits = random_logits(0, target)
    if own:
        loss = sigmoid_focal_loss(logits, torch.zeros_like(logits), reduction="sum")
    else:
        loss = ClassificationLoss(make_info([9.0] * 5))(logits, replace(target), torch.tensor(7.0))
    # Building a graph of the gradient is allowed; differentiating it is not.
    (gradient,) = torch.autograd.grad(3.0 * loss, logits, create_graph=True)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    with pytest.raises(RuntimeError, match="no second derivative.*torchvision"):
        gradient.square().sum().backward()
