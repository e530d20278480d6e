"""Focal loss compared with torchvision, CornerNet's heat-map loss, and closed-form values of untrained heads."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from afl.losses import ClassificationLoss, sigmoid_focal_loss
from tests.losses.cases import loss_and_gradient, make_info, plain_target, random_logits, random_target


def both(ours, theirs, logits):
    return loss_and_gradient(ours.sum(), logits), loss_and_gradient(theirs.sum(), logits)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("alpha", [-1, 0.25, 0.9])
@pytest.mark.parametrize("gamma", [0, 1, 1.5, 2])
@pytest.mark.parametrize("soft", [False, True])
def test_sigmoid_focal_loss_equals_torchvision(reduction, alpha, gamma, soft):
    torch.manual_seed(0)
    logits = (4 * torch.randn(3, 7, 5, dtype=torch.float64)).requires_grad_()
    targets = torch.rand(3, 7, 5, dtype=torch.float64)
    targets = targets if soft else targets.round()
    ours = sigmoid_focal_loss(logits, targets, alpha, gamma, reduction)
    theirs = torchvision_focal_loss(logits, targets, alpha, gamma, reduction)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(*both(ours, theirs, logits))


def test_sigmoid_focal_loss_has_torchvision_defaults():
    torch.manual_seed(1)
    logits, targets = torch.randn(4, 6), torch.rand(4, 6).round()
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets), torchvision_focal_loss(logits, targets))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_map_loss_equals_torchvision_on_one_hot_targets(dtype):
    target = random_target(2, scaled=0, locations=200, positives=40)
    logits = random_logits(2, target).detach().to(dtype).requires_grad_()
    one_hot = torch.zeros(logits.numel())
    one_hot[target.positive[target.is_positive]] = 1
    loss = ClassificationLoss(make_info([9, 8, 7, 6, 5]))
    theirs = logits.detach().float().requires_grad_()
    expected = torchvision_focal_loss(theirs, one_hot.view_as(logits), reduction="sum") / 40
    ours, gradient = loss_and_gradient(loss(logits, target, torch.tensor(40.0)), logits)
    expected, slope = loss_and_gradient(expected, theirs)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        gradient, slope.to(dtype), rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=1e-9
    )


def cornernet_loss(logits, heat):
    """Law and Deng 2018, eq. 1, with the clamp of the official code; not divided by the number of peaks."""
    p = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = -((1 - p) ** 2) * p.log()
    other = -((1 - heat) ** 4) * p**2 * (1 - p).log()
    return torch.where(heat == 1, peak, other).sum()


def test_map_loss_equals_cornernet_inside_its_clamp_range():
    torch.manual_seed(3)
    height, width, classes = 12, 10, 3
    logits = torch.empty(height, width, classes, dtype=torch.float64).uniform_(-9.2, 9.2).requires_grad_()
    heat = torch.zeros(height, width, classes, dtype=torch.float64)
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for y, x, label, sigma in [(2, 3, 0, 1.0), (3, 4, 0, 1.5), (11, 9, 2, 0.7)]:
        bump = torch.exp(-((ys - y) ** 2 + (xs - x) ** 2) / (2 * sigma**2))
        bump[bump < 1e-6] = 0
        heat[..., label] = torch.maximum(heat[..., label], bump)
    flat = heat.reshape(-1)
    near = ((flat > 0) & (flat < 1)).nonzero().squeeze(1)
    peaks = (flat == 1).nonzero().squeeze(1).tolist()
    target = plain_target(
        height * width, classes, peaks, negative_index=near, negative_scale=(1 - flat[near]) ** 4
    )
    loss = ClassificationLoss(make_info([1, 1, 1], prior=0.1, alpha=-1))
    ours = loss(logits.view(-1, classes), target, torch.tensor(float(len(peaks))))
    torch.testing.assert_close(*both(ours, cornernet_loss(logits, heat) / len(peaks), logits))


@pytest.mark.parametrize(
    ("prior", "alpha", "negative", "positive"),
    [
        (0.01, 0.25, 7.54e-7, 1.128),  # RetinaNet and FCOS
        (0.10065, -1.0, 1.0747e-3, 1.857),  # CornerNet, CenterNet, ExtremeNet with bias -2.19
        (0.01, -1.0, 1.0050e-6, 4.514),
    ],
)
def test_an_untrained_head_has_the_loss_of_a_closed_form(prior, alpha, negative, positive):
    locations, classes = 128 * 128, 80
    logits = torch.full((locations, classes), math.log(prior / (1 - prior)))
    loss = ClassificationLoss(make_info([1.0] * classes, prior=prior, alpha=alpha))
    one = torch.tensor(1.0)
    empty = loss(logits, plain_target(locations, classes, []), one)
    assert empty.item() == pytest.approx(negative * locations * classes, rel=1e-3)
    full = loss(logits[:1], plain_target(1, classes, list(range(classes))), one)
    assert full.item() == pytest.approx(positive * classes, rel=1e-3)


def test_loss_under_autocast_equals_loss_without():
    target = random_target(4)
    logits = random_logits(4, target).detach().float().requires_grad_()
    loss = ClassificationLoss(make_info([9, 8, 7, 6, 5]))
    expected = loss_and_gradient(loss(logits, target, torch.tensor(3.0)), logits)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss_and_gradient(loss(logits, target, torch.tensor(3.0)), logits)
    assert inside[0] == expected[0] and torch.equal(inside[1], expected[1])


def test_wrong_shape_of_logits_is_named():
    loss = ClassificationLoss(make_info([1, 1]))
    with pytest.raises(ValueError, match=r"\(3, 5\).*\(3, 2\).*2 classes"):
        loss(torch.zeros(3, 5), plain_target(3, 2, []), torch.tensor(1.0))
