"""Seesaw loss compared with cross-entropy on logits shifted by ln S, in loops, and with the definition of S."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from afl.losses import ClassificationLoss, ElementWeights, Seesaw, at_objects
from tests.losses.cases import loss_and_gradient, make_info, plain_target, random_logits, random_target


def build(classes=5, **options):
    chain = {"seesaw": lambda info: Seesaw(info, **options)}
    return ClassificationLoss(make_info([1.0] * classes), chain=chain, gamma=0.0, alpha=-1.0)


def published_factors(z, i, counts, p, q, eps):
    """S_ij for all j of one sample of class i."""
    score = torch.sigmoid(z).tolist()
    factors = []
    for j in range(len(z)):
        n_i, n_j = max(counts[i], 1), max(counts[j], 1)
        mitigation = (n_j / n_i) ** p if n_i > n_j else 1.0
        ratio = score[j] / max(score[i], eps)
        factors.append(mitigation * (ratio**q if ratio > 1 else 1.0) if j != i else 1.0)
    return torch.tensor(factors, dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"p": 0.0}, {"q": 0.0}, {"p": 2.0, "q": 1.0, "eps": 0.1}])
@pytest.mark.parametrize("block", [1, 1 << 16])
def test_gradient_equals_cross_entropy_on_shifted_logits_by_autograd(options, block, monkeypatch):
    monkeypatch.setattr(at_objects, "_BLOCK", block)
    loss = build(**options)
    p, q, eps = options.get("p", 0.8), options.get("q", 2.0), options.get("eps", 1e-2)
    counts = [0.0] * 5
    for seed in range(3):
        target = random_target(seed, scaled=0, positives=12)
        # One class per location, as on anchor heads; the first class is the most frequent.
        location = target.positive_location
        label = torch.where(torch.arange(len(location)) % 3 > 0, 0, target.positive_class)
        _, inverse = location.unique(return_inverse=True)
        first = torch.tensor([bool((inverse[:n] != inverse[n]).all()) for n in range(len(location))])
        target = replace(target, positive=torch.where(target.is_positive & first, location * 5 + label, -1))
        logits = random_logits(seed, target)
        _, gradient = loss_and_gradient(loss(logits, target, torch.tensor(1.0)), logits)
        loss.update()
        y, shift = torch.zeros_like(logits), torch.zeros_like(logits)
        hits = target.positive[target.is_positive].tolist()
        for index in hits:
            row, i = divmod(index, 5)
            y[row, i] = 1
            shift[row] = published_factors(logits[row], i, counts, p, q, eps).log()
        entropy = F.binary_cross_entropy_with_logits(logits + shift.detach(), y, reduction="sum")
        _, expected = loss_and_gradient(entropy, logits)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-15)
        for index in hits:
            counts[index % 5] += 1
    assert loss.chain["seesaw"].count.tolist() == counts and max(counts) > 3 * max(1, min(counts))


def element_weights(link, z, target):
    """(R, C) weights, 1 where the link does not change a location."""
    found = link(z, target, ElementWeights(alpha=-1.0, gamma=0.0))
    return torch.where((found.slot >= 0).unsqueeze(1), found.negative_slot[found.slot.clamp(min=0)], 1.0)


def test_only_negatives_of_rare_classes_are_reduced_by_the_ratio_of_counts():
    """100 samples of class 0 and 4 of class 1, with small and equal probabilities: (4 / 100)^0.8 and 1."""
    link = Seesaw(make_info([1.0, 1.0]))
    link.count[:] = torch.tensor([100.0, 4.0])
    z = torch.full((3, 2), -12.0)
    weight = element_weights(link, z, plain_target(3, 2, [0, 3]))
    expected = [[1.0, 0.04**0.8], [1.0, 1.0], [1.0, 1.0]]
    torch.testing.assert_close(weight, torch.tensor(expected), rtol=1e-4, atol=0)
    assert link.statistics()["mitigation_min"].item() == pytest.approx(0.04**0.8)


def test_a_confused_class_has_a_larger_gradient_up_to_the_full_one():
    link = Seesaw(make_info([1.0, 1.0, 1.0]))
    p = torch.tensor([[0.02, 0.04, 0.9]])
    weight = element_weights(link, p.logit(), plain_target(1, 3, [0]))
    for j, s in ((1, 2.0**2), (2, 45.0**2)):
        shifted = s * p[0, j] / (1 - p[0, j])
        assert (weight[0, j] * p[0, j]).item() == pytest.approx((shifted / (1 + shifted)).item(), rel=1e-4)
    assert (weight * p).max() < 1


def test_objects_that_share_a_location_use_the_larger_weight():
    link = Seesaw(make_info([1.0] * 3))
    link.count[:] = torch.tensor([100.0, 1.0, 1.0])
    z = torch.full((1, 3), -12.0)
    alone, both = (element_weights(link, z, plain_target(1, 3, hits)) for hits in ([0], [0, 1]))
    assert alone[0, 2].item() == pytest.approx(100**-0.8, rel=1e-4)
    assert both[0, 2].item() == pytest.approx(1.0, rel=1e-4)


def test_confident_mistakes_keep_their_digits_in_single_precision():
    link = Seesaw(make_info([1.0, 1.0]))
    link.count[:] = torch.tensor([1e6, 1.0])
    for z in (-80.0, -5.0, 0.0, 5.0, 12.0, 80.0):
        weight = element_weights(link, torch.tensor([[10.0, z]]), plain_target(1, 2, [0]))
        p = 1 / (1 + math.exp(-z))
        s = 1e6**-0.8 * max(1.0, p * (1 + math.exp(-10.0))) ** 2
        expected = s * (1 + math.exp(-z)) / (math.exp(-z) + s)
        assert weight[0, 1].item() == pytest.approx(expected, rel=1e-5)


def test_a_map_with_one_class_has_weights_of_one_like_the_published_objectness_branch():
    info = make_info([1.0], name="objectness")
    z, target = torch.tensor([[0.4], [-1.0]]), plain_target(2, 1, [0])
    plain = ClassificationLoss(info)(z, target, torch.tensor(1.0))
    chain = {"seesaw": Seesaw}
    assert ClassificationLoss(info, chain=chain)(z, target, torch.tensor(1.0)) == plain
