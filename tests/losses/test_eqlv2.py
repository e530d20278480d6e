"""The weights of EQLv2 at known ratios and over a training; test_every_method.py has its steps by autograd."""

from __future__ import annotations

import math

import pytest
import torch

from afl.losses import ClassificationLoss, ElementWeights, EqualizationV2
from tests.losses.cases import make_info, plain_target

COUNTS = [1400.0, 567.0, 87.0, 12.0, 2.0]


def build(counts=COUNTS, **options):
    chain = {"eqlv2": lambda info: EqualizationV2(info, **options)}
    return ClassificationLoss(make_info(counts), chain=chain, gamma=0.0, alpha=-1.0)


@pytest.mark.parametrize(("gamma", "mu", "alpha"), [(12.0, 0.8, 4.0), (5.0, 0.1, 2.0)])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.8, 1.0, 3.0])
def test_weights_at_a_known_ratio(ratio, gamma, mu, alpha):
    """By default f(0.8) = 1/2, so a positive has the weight 3; other values follow the paper's curve."""
    link = EqualizationV2(make_info([1.0, 1.0]), gamma=gamma, mu=mu, alpha=alpha)
    link.ratio.running[:] = torch.tensor([[ratio, 1.0], [1.0, 0.0]])
    given = link(torch.zeros(2, 2), plain_target(2, 2, [0, 3]), ElementWeights(alpha=-1.0, gamma=0.0))
    f = 1 / (1 + math.exp(-gamma * (ratio - mu)))
    assert given.negative_class.tolist() == pytest.approx([f, 1.0])
    assert given.positive.tolist() == pytest.approx([1 + alpha * (1 - f), 1.0])


def test_the_weight_of_a_soft_positive_is_the_published_mixture():
    link = EqualizationV2(make_info([1.0]))
    link.ratio.running[:] = torch.tensor([[0.8], [1.0]])
    target = plain_target(3, 1, [0, 1, 2], value=torch.tensor([0.0, 0.25, 1.0]))
    given = link(torch.zeros(3, 1), target, ElementWeights(alpha=-1.0, gamma=0.0))
    assert given.positive.tolist() == pytest.approx([0.5, 0.25 * 3 + 0.75 * 0.5, 3.0])


def test_gradients_of_a_class_with_few_positives_become_balanced():
    """With 1 positive and 400 negatives at constant logits, the weights converge to a balance of the sums near mu."""
    loss = build([1.0])
    # The fused kernels do not support float64; a thousand steps in their interpreter would take minutes.
    z = torch.cat([torch.zeros(1, 1), torch.full((400, 1), -2.0)]).double()
    target = plain_target(401, 1, [0])
    for _ in range(1000):
        loss(z, target, torch.tensor(1.0))
        loss.update()
    assert 0.4 < loss.chain["eqlv2"].ratio.value.item() < 0.8


def weight_of_negatives_in_the_end(prior: float) -> float:
    """The weight for a class with 2 instances in 24 epochs, on 16 maps of 24 x 24 whose negatives are learned immediately."""
    loss, target = build([1.0]), plain_target(16 * 24 * 24 + 1, 1, [0])
    shares = torch.full((16 * 24 * 24 + 1, 1), prior, dtype=torch.float64)
    for _ in range(1 + 2 * 24):
        loss(shares.logit(), target, torch.tensor(1.0))
        loss.update()
        shares[0], shares[1:] = 0.5, 1e-4
    return loss.chain["eqlv2"].statistics()["negative_weight_min"].item()


def test_a_rare_class_becomes_balanced_from_the_published_prior_but_not_from_that_of_a_heat_map():
    loss = build()
    assert loss.wants_prior and loss.prior_from_data(3.0, 900.0) == 0.001
    assert weight_of_negatives_in_the_end(0.001) > 0.2
    assert weight_of_negatives_in_the_end(0.1) < 0.001
    assert not build(prior=None).wants_prior and not ClassificationLoss(make_info(COUNTS)).wants_prior
