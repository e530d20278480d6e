"""Varifocal loss compared with the published formula by autograd and by finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from afl.losses import UndefinedPair, VarifocalLoss
from tests.losses.cases import dense, loss_and_gradient, make_info, plain_target, random_logits, random_target

COUNTS = [50.0, 9.0, 4.0, 2.0, 1.0]


def with_overlap(target, seed=0):
    """A third of the boxes do not overlap their objects."""
    random = torch.Generator().manual_seed(seed)
    return replace(target, overlap=(1.5 * torch.rand(len(target.positive), generator=random) - 0.5).clamp(0))


def published(logits, q, alpha, gamma):
    """Dense q (R, C): weight q where q > 0, else alpha |p - q|^gamma, on cross-entropy with q."""
    p = torch.sigmoid(logits)
    weight = torch.where(q > 0, q, alpha * (p - q).abs() ** gamma)
    return weight * F.binary_cross_entropy_with_logits(logits, q, reduction="none")


@pytest.mark.parametrize(("alpha", "gamma"), [(0.75, 2.0), (1.0, 1.5), (0.3, 0.0)])
@pytest.mark.parametrize("kind", [{"scaled": 0}, {"scaled": 0, "ignored": True, "verified": True}])
def test_loss_and_gradient_equal_the_published_formula(alpha, gamma, kind):
    """All elements that contribute, as in the official code, whose positives with q = 0 are negatives."""
    target = with_overlap(random_target(1, positives=20, **kind))
    logits = random_logits(1, target)
    loss = VarifocalLoss(make_info(COUNTS), alpha=alpha, gamma=gamma)
    normalizer = torch.tensor(6.0, dtype=torch.float64)
    listed = replace(target, value=target.overlap.double())
    q, mass = dense(logits, listed)
    if target.verified is not None:  # a negative of an unverified class, for any box
        missed = target.positive[target.is_positive & (target.overlap == 0)]
        location, label = missed // 5, missed % 5
        mass[location, label] = target.verified[target.image[location], label].double()
    expected = loss_and_gradient((mass * published(logits, q, alpha, gamma)).sum() / normalizer, logits)
    actual = loss_and_gradient(loss(logits, target, normalizer), logits)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-14)


def test_gradients_are_q_times_p_minus_q_and_alpha_times_the_focal_one():
    z = torch.tensor([[0.6], [0.2]]).double().logit().requires_grad_()
    target = plain_target(2, 1, [0], overlap=torch.tensor([0.8]))
    _, gradient = loss_and_gradient(VarifocalLoss(make_info([1.0]))(z, target, torch.tensor(1.0)), z)
    p = torch.tensor(0.2, dtype=torch.float64)
    focal = p**3 - 2 * p**2 * (1 - p) * torch.log(1 - p)
    assert gradient.flatten().tolist() == pytest.approx([0.8 * (0.6 - 0.8), 0.75 * focal.item()])


def test_gradient_passes_gradcheck():
    target = with_overlap(random_target(2, locations=4, positives=8, ignored=True))
    loss = VarifocalLoss(make_info(COUNTS))
    assert torch.autograd.gradcheck(lambda z: loss(z, target, torch.tensor(2.0)), random_logits(2, target))


def test_heat_maps_scale_negatives_and_leave_out_peaks_without_overlap():
    info = replace(make_info([1.0]), dense_positives=False)
    z = torch.tensor([[0.3], [0.3], [0.3], [0.3]]).double().logit().requires_grad_()
    target = plain_target(
        4,
        1,
        [0, 1],
        overlap=torch.tensor([0.0, 0.5]),
        negative_index=torch.tensor([2]),
        negative_scale=torch.tensor([0.5]),
    )
    _, gradient = loss_and_gradient(VarifocalLoss(info)(z, target, torch.tensor(1.0)), z)
    assert gradient[0] == 0 and gradient[1].item() == pytest.approx(0.5 * (0.3 - 0.5))
    assert gradient[3] > 0 and gradient[2].item() == pytest.approx(0.5 * gradient[3].item())


def test_the_soft_target_of_the_head_replaces_the_overlap():
    z = torch.tensor([[0.5]]).logit().requires_grad_()
    target = plain_target(1, 1, [0], value=torch.tensor([0.5]), overlap=torch.tensor([0.9]))
    _, gradient = loss_and_gradient(VarifocalLoss(make_info([1.0]))(z, target, torch.tensor(1.0)), z)
    assert gradient.item() == pytest.approx(0.0, abs=1e-7)


def test_a_map_without_boxes_is_rejected_with_its_name_and_the_reason():
    loss = VarifocalLoss(make_info([1.0] * 5, name="left"))
    assert loss.uses_overlap
    with pytest.raises(UndefinedPair, match="vfl needs .* 'left' predicts no box"):
        loss(torch.zeros(4, 5), plain_target(4, 5, []), torch.tensor(1.0))
