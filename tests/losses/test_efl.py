"""EFL compared with its formula by autograd, step by step, and with focal loss in the cases in which both are equal."""

from __future__ import annotations

import pytest
import torch

from afl.losses import ClassificationLoss, ElementWeights, EqualizedFocus
from tests.losses.cases import dense, loss_and_gradient, make_info, plain_target, random_logits, random_target

COUNTS = [1400.0, 567.0, 87.0, 12.0, 2.0]


def build(gamma=2.0, alpha=None, **options):
    chain = {"efl": lambda info: EqualizedFocus(info, **options)}
    return ClassificationLoss(make_info(COUNTS), chain=chain, gamma=gamma, alpha=alpha)


@pytest.mark.parametrize(("alpha", "base"), [(0.25, 2.0), (-1.0, 1.5)])
@pytest.mark.parametrize("kind", [{"scaled": 0}, {"scaled": 40, "ignored": True, "verified": True}])
def test_steps_equal_the_published_formula(kind, alpha, base):
    loss, normalizer = build(base, alpha), torch.tensor(7.0, dtype=torch.float64)
    up, down = torch.zeros(5).double(), torch.zeros(5).double()
    ratio, exponents = torch.ones(5).double(), []
    for seed in range(4):
        target = random_target(seed, positives=60, **kind)
        logits = random_logits(seed, target, spread=1.5)
        actual = loss_and_gradient(loss(logits, target, normalizer), logits)
        loss.update()
        y, mass = dense(logits, target)
        p = torch.sigmoid(logits)
        p_t = p * y + (1 - p) * (1 - y)
        gamma = base + 8.0 * (1 - ratio)
        alpha_t = 0.25 * y + 0.75 * (1 - y) if alpha > 0 else 1.0
        each = alpha_t * (gamma / base) * (1 - p_t) ** gamma * -torch.log(p_t)
        expected = loss_and_gradient((mass * each).sum() / normalizer, logits)
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-15)
        size = expected[1].abs() * normalizer
        up, down = up + (size * y).sum(0), down + (size * (1 - y)).sum(0)
        ratio = (up / down).clamp(0, 1)
        exponents.append(gamma)
    assert (exponents[0] == base).all() and 2.5 < exponents[-1].max() < 9.9  # they change during the test


def test_before_the_first_step_it_is_focal_loss():
    target = random_target(9)
    logits = random_logits(9, target)
    focal = ClassificationLoss(make_info(COUNTS))
    expected = loss_and_gradient(focal(logits, target, torch.tensor(3.0)), logits)
    actual = loss_and_gradient(build()(logits, target, torch.tensor(3.0)), logits)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def test_a_class_with_larger_positive_gradients_keeps_the_base_exponent():
    link = EqualizedFocus(make_info([1.0, 1.0, 1.0]))
    link.ratio.running[:] = torch.tensor([[5.0, 1.0, 0.0], [1.0, 4.0, 1.0]])
    given = link(torch.zeros(1, 3), plain_target(1, 3, [1]), ElementWeights(alpha=0.25, gamma=2.0))
    assert given.gamma.tolist() == pytest.approx([2.0, 8.0, 10.0])
    assert given.negative_class.tolist() == pytest.approx([1.0, 4.0, 5.0])
    assert given.positive.tolist() == pytest.approx([4.0])


def test_a_missing_base_exponent_is_rejected():
    with pytest.raises(ValueError, match="positive gamma"):
        build(gamma=0.0)(torch.zeros(1, 5), plain_target(1, 5, []), torch.tensor(1.0))
