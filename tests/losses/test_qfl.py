"""Quality focal loss compared with its formula by autograd and by finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from afl.losses import AdaptiveGradient, ClassificationLoss, ClassWeights, QualityFocalLoss, UndefinedPair
from tests.losses.cases import dense, loss_and_gradient, make_info, plain_target, random_logits, random_target

COUNTS = [50.0, 9.0, 4.0, 2.0, 1.0]


def with_overlap(target, seed=0):
    random = torch.Generator().manual_seed(seed)
    return replace(target, overlap=torch.rand(len(target.positive), generator=random))


def published(logits, y, beta):
    """-|y - p|^beta ((1 - y) ln(1 - p) + y ln p)."""
    p = torch.sigmoid(logits)
    return -((y - p).abs() ** beta) * ((1 - y) * torch.log(1 - p) + y * torch.log(p))


@pytest.mark.parametrize("gamma", [2.0, 1.0, 0.5])
@pytest.mark.parametrize("kind", [{"scaled": 0}, {"scaled": 40, "ignored": True, "verified": True}])
def test_loss_and_gradient_equal_the_published_formula(gamma, kind):
    target = with_overlap(random_target(1, positives=20, **kind))
    logits = random_logits(1, target)
    loss = QualityFocalLoss(make_info(COUNTS), gamma=gamma)
    normalizer = torch.tensor(6.0, dtype=torch.float64)
    y, mass = dense(logits, replace(target, value=target.overlap))
    expected = loss_and_gradient((mass * published(logits, y, gamma)).sum() / normalizer, logits)
    actual = loss_and_gradient(loss(logits, target, normalizer), logits)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-14)


def test_gradient_passes_gradcheck():
    target = with_overlap(random_target(2, locations=4, positives=8))
    loss = QualityFocalLoss(make_info(COUNTS))
    assert torch.autograd.gradcheck(lambda z: loss(z, target, torch.tensor(2.0)), random_logits(2, target))


def test_the_soft_target_of_the_head_replaces_the_overlap():
    loss = QualityFocalLoss(make_info([1.0]))
    z = torch.tensor([[0.3]]).logit()
    target = plain_target(1, 1, [0], value=torch.tensor([0.3]), overlap=torch.tensor([0.9]))
    assert loss(z, target, torch.tensor(1.0)).item() == pytest.approx(0.0, abs=1e-9)
    assert loss(z, replace(target, value=None), torch.tensor(1.0)).item() > 0.1


def test_a_chain_acts_on_the_soft_target():
    chain = {"weights": ClassWeights, "gate": AdaptiveGradient}
    target = with_overlap(random_target(3))
    logits = random_logits(3, target)
    soft = replace(target, value=target.overlap)
    expected = ClassificationLoss(make_info(COUNTS), chain=chain, alpha=-1.0)(logits, soft, torch.tensor(2.0))
    actual = QualityFocalLoss(make_info(COUNTS), chain=chain)(logits, target, torch.tensor(2.0))
    assert actual == expected


def test_a_map_without_boxes_is_rejected_with_its_name_and_the_reason():
    loss = QualityFocalLoss(make_info([1.0] * 5, name="bottom"))
    assert loss.uses_overlap
    with pytest.raises(UndefinedPair, match="qfl needs .* 'bottom' predicts no box"):
        loss(torch.zeros(4, 5), plain_target(4, 5, []), torch.tensor(1.0))
