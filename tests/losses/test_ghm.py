"""GHM-C compared with the official algorithm, element by element, and with its closed form."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from afl.losses import ClassificationLoss, ElementWeights, GradientHarmonizing, ghm, negatives
from afl.losses.reference import dense_target
from tests.losses.cases import loss_and_gradient, make_info, plain_target, random_logits, random_target

PLAIN = ElementWeights(alpha=-1.0, gamma=0.0)


def build(classes=5, **options):
    info = make_info([1.0] * classes)
    link = {"ghm": lambda info: GradientHarmonizing(info, **options)}
    return ClassificationLoss(info, chain=link, gamma=0.0, alpha=-1.0)


def normalizer_of(target):
    return target.is_positive.sum().clamp(min=1).double()


class Official:
    """The published loop over bins; a bin's mean starts at its first count."""

    def __init__(self, bins, momentum):
        self.bins, self.momentum, self.counts = bins, momentum, [0.0] * bins

    def weights(self, z, y, mass):
        g = (torch.sigmoid(z) - y).abs()
        weight, filled = torch.zeros_like(z), 0
        for b in range(self.bins):
            upper = 2.0 if b == self.bins - 1 else (b + 1) / self.bins
            inside = (g >= b / self.bins) & (g < upper) & (mass > 0)
            count = mass[inside].sum().item()
            if count > 0:
                old = self.counts[b]
                self.counts[b] = self.momentum * old + (1 - self.momentum) * count if old else count
                weight[inside] = 1 / self.counts[b]
                filled += 1
        return weight / max(filled, 1)


@pytest.mark.parametrize("bins", [1, 10, 30, 256])
@pytest.mark.parametrize(
    "kind",
    [
        {"scaled": 0},
        {"scaled": 40, "ignored": True},
        {"scaled": 40, "verified": True, "positives": 20},
        {"scaled": 0, "soft": True},
    ],
)
def test_steps_equal_the_official_loop_divided_by_the_normalizer(bins, kind):
    loss, official = build(bins=bins, momentum=0.75), Official(bins, 0.75)
    for seed in range(4):
        target = random_target(seed, **kind)
        logits = random_logits(seed, target)
        actual = loss_and_gradient(loss(logits, target, normalizer_of(target)), logits)
        loss.update()
        y, mass = dense_target(target, PLAIN, logits)
        weight = official.weights(logits.detach(), y, mass) * mass
        entropy = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
        expected = loss_and_gradient((weight * entropy).sum(), logits)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-15)
        assert loss.chain["ghm"].running.tolist() == pytest.approx(official.counts)


def test_first_step_is_the_mean_over_used_bins_of_mean_cross_entropies():
    """1,000 negatives at p = 0.01, one at 0.55, and two positives: each bin has the same weight."""
    z = torch.tensor([0.01] * 1000 + [0.55] + [0.2, 0.22]).double().logit().unsqueeze(1)
    loss = build(1)(z, plain_target(1003, 1, [1001, 1002]), torch.tensor(2.0))
    easy, hard = -math.log(0.99), -math.log(0.45)
    positives = -(math.log(0.2) + math.log(0.22)) / 2
    assert loss.item() == pytest.approx((easy + hard + positives) / 3)


def test_many_hard_negatives_have_the_weight_of_many_easy_ones():
    """The single element between two large groups has as much gradient as each of them."""
    z = torch.tensor([0.001] * 500 + [0.5] + [0.999] * 500).double().logit().unsqueeze(1).requires_grad_()
    _, gradient = loss_and_gradient(build(1)(z, plain_target(1001, 1, []), torch.tensor(1.0)), z)
    weight = gradient / torch.sigmoid(z.detach())
    shares = [part.sum().item() for part in weight.split([500, 1, 500])]
    assert shares == pytest.approx([1 / 3, 1 / 3, 1 / 3])


def test_negative_under_a_gaussian_counts_as_its_scale():
    """An element of scale 1/4 four times is one element of scale 1."""
    z = torch.tensor([[0.3]] * 4 + [[0.8]]).double().logit()
    many = plain_target(5, 1, [4], negative_index=torch.arange(4), negative_scale=torch.full((4,), 0.25))
    once = plain_target(2, 1, [1])
    assert build(1)(z, many, torch.tensor(1.0)).item() == pytest.approx(
        build(1)(z[3:], once, torch.tensor(1.0)).item()
    )


def test_parts_of_one_step_update_the_histogram_by_their_mean():
    loss = build(1, bins=2, momentum=0.5)
    link = loss.chain["ghm"]
    one, two = torch.tensor([[-1.0], [-1.0], [1.0]]), torch.tensor([[-1.0], [1.0], [1.0]])
    for parts, running in [((one,), [2.0, 1.0]), ((one, two), [1.75, 1.25]), ((), [1.75, 1.25])]:
        for z in parts:
            loss(z, plain_target(3, 1, []), torch.tensor(1.0))
        loss.update()
        assert link.running.tolist() == pytest.approx(running)


@pytest.mark.parametrize("on_host", [True, False])
def test_block_size_and_device_path_do_not_change_the_result(monkeypatch, on_host):
    target = random_target(3, ignored=True, verified=True, scaled=40)
    logits = random_logits(3, target)
    expected = loss_and_gradient(build()(logits, target, torch.tensor(3.0)), logits)
    monkeypatch.setattr(negatives, "BLOCK", 7)
    monkeypatch.setattr(negatives.Eraser, "on_host", on_host)
    actual = loss_and_gradient(build()(logits, target, torch.tensor(3.0)), logits)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("positives", [0, 1, 2, 5])
def test_two_processes_give_the_loss_of_one_also_with_fewer_positives_than_processes(monkeypatch, positives):
    parts = [random_target(k, positives=(positives + 1 - k) // 2, scaled=0, padding=0) for k in range(2)]
    logits = [random_logits(k, part) for k, part in enumerate(parts)]
    added = [GradientHarmonizing(make_info([1.0] * 5)) for _ in range(2)]
    sums: list[torch.Tensor] = []
    monkeypatch.setattr(ghm, "all_reduce_sum", lambda counts: sums.append(counts.clone()) or counts)
    for link, z, part in zip(added, logits, parts, strict=True):
        link(z.detach(), part, PLAIN)
    monkeypatch.setattr(ghm, "all_reduce_sum", lambda counts: sums[0] + sums[1])
    # Detectors divide by the mean over ranks of the number of positives, at least 1 in all ranks together.
    share = torch.tensor(max(positives, 1) / 2, dtype=torch.float64)
    mean = sum(build()(z, part, share) for z, part in zip(logits, parts, strict=True)) / 2

    z, y = torch.cat(logits).detach(), torch.cat([torch.zeros_like(z) for z in logits])
    y.view(-1)[torch.cat([parts[0].positive, parts[1].positive + logits[0].numel()])] = 1.0
    weight = Official(30, 0.75).weights(z, y, torch.ones_like(z))
    expected = (weight * F.binary_cross_entropy_with_logits(z, y, reduction="none")).sum()
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=0)
