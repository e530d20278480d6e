"""PISA compared with the published two-step ranking in loops, and with the definition of a rank."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from afl.losses import ClassificationLoss, ClassWeights, ElementWeights, PrimeSampleAttention, UndefinedPair
from afl.losses.pisa import hierarchical_local_rank
from tests.losses.cases import loss_and_gradient, make_info, plain_target, random_logits, random_target

COUNTS = [50.0, 9.0, 4.0, 2.0, 1.0]


def build(info=None, before=None, **options):
    chain = {} if before is None else {"before": before}
    chain["pisa"] = lambda info: PrimeSampleAttention(info, **options)
    return ClassificationLoss(info or make_info(COUNTS), chain=chain)


def with_boxes(target, seed=0, objects=6):
    """Every positive gets an IoU and one of the objects of its class."""
    random = torch.Generator().manual_seed(seed)
    count = len(target.positive)
    owner = target.positive_class * objects + torch.randint(objects, (count,), generator=random)
    return replace(
        target, overlap=torch.rand(count, generator=random), object=torch.where(target.is_positive, owner, -1)
    )


def official_ranks(overlap, owner, label):
    """Add the largest allowed rank difference to each IoU, and sort the sums within the class."""
    score = overlap.double().clone()
    most = len(score)
    for thing in owner.unique():
        members = (owner == thing).nonzero().flatten().tolist()
        for place, member in enumerate(sorted(members, key=lambda m: -overlap[m])):
            score[member] += most - place
    ranks = torch.zeros(len(score), dtype=torch.int64)
    for kind in label.unique():
        members = (label == kind).nonzero().flatten().tolist()
        for place, member in enumerate(sorted(members, key=lambda m: -score[m])):
            ranks[member] = place
    return ranks


def official_weights(target, loss, k, bias):
    """Weights of the positives that are not padding, in their order."""
    hit = target.is_positive
    label = target.positive_class[hit]
    rank = official_ranks(target.overlap[hit], target.object[hit], label)
    most = label.bincount().max()
    weight = (bias + (1 - bias) * (most - rank).double() / most) ** k
    return weight * loss.sum() / (weight * loss).sum()


def test_the_best_box_of_every_object_comes_first():
    """Objects A (0.9, 0.8, 0.3) and B (0.5, 0.4) of one class: A1 B1 A2 B2 A3."""
    quality = torch.tensor([0.8, 0.5, 0.9, 0.3, 0.4])
    owner, label = torch.tensor([7, 2, 7, 7, 2]), torch.zeros(5, dtype=torch.int64)
    assert hierarchical_local_rank(quality, owner, label).tolist() == [2, 1, 0, 4, 3]


@pytest.mark.parametrize("seed", range(5))
def test_rank_equals_published_loops(seed):
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(4, (60,), generator=random)
    owner = label * 9 + torch.randint(9, (60,), generator=random)
    quality = torch.rand(60, generator=random)
    assert torch.equal(hierarchical_local_rank(quality, owner, label), official_ranks(quality, owner, label))


@pytest.mark.parametrize("options", [{}, {"k": 1.0, "bias": 0.2}, {"k": 0.0}])
@pytest.mark.parametrize("soft", [False, True])
def test_gradient_of_positives_equals_published_weights_times_focal_gradient(options, soft):
    target = with_boxes(random_target(1, positives=25, soft=soft, padding=30))
    logits = random_logits(1, target)
    plain = ClassificationLoss(make_info(COUNTS))
    normalizer = torch.tensor(11.0)
    value, gradient = loss_and_gradient(build(**options)(logits, target, normalizer), logits)
    whole, free = loss_and_gradient(plain(logits, target, normalizer), logits)
    index = target.positive[target.is_positive]
    y = torch.ones(len(index)).double() if target.value is None else target.value[target.is_positive].double()
    z = logits.detach().view(-1)[index]
    p = torch.sigmoid(z)
    entropy = -(y * p.log() + (1 - y) * (1 - p).log())
    each = (0.25 * y + 0.75 * (1 - y)) * (p - y).abs() ** 2 * entropy
    weight = official_weights(target, each, options.get("k", 2.0), options.get("bias", 0.0))
    expected = free.clone()
    expected.view(-1)[index] *= weight
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(value, whole, rtol=1e-6, atol=0)  # the positives' loss keeps its sum


def test_previous_links_are_included_in_the_preserved_sum():
    target = with_boxes(random_target(2, positives=25))
    logits = random_logits(2, target)
    kept = build(before=ClassWeights)(logits, target, torch.tensor(1.0))
    alone = ClassificationLoss(make_info(COUNTS), chain={"before": ClassWeights})
    assert kept.item() == pytest.approx(alone(logits, target, torch.tensor(1.0)).item(), rel=1e-6)


def test_on_heat_maps_every_peak_is_an_object_and_only_the_class_rank_is_used():
    """Peaks of one class at p = 1/2, so with equal losses: u = 1, 2/3, 1/3, squared and scaled to mean 1."""
    info = replace(make_info(COUNTS), dense_positives=False)
    target = plain_target(4, 5, [0, 5, 10], overlap=torch.tensor([0.2, 0.9, 0.5]))
    weights = PrimeSampleAttention(info)(torch.zeros(4, 5), target, ElementWeights(alpha=-1.0, gamma=2.0))
    assert weights.positive.tolist() == pytest.approx([3 * 1 / 14, 3 * 9 / 14, 3 * 4 / 14])


def test_a_map_without_boxes_is_rejected_with_its_name_and_the_reason():
    info = make_info([1.0] * 5, name="top_left", dense_positives=False)
    target = plain_target(4, 5, [])
    with pytest.raises(UndefinedPair, match="'top_left' predicts no box"):
        build(info)(torch.zeros(4, 5), target, torch.tensor(1.0))
    with pytest.raises(UndefinedPair, match="which object"):
        build()(torch.zeros(4, 5), replace(target, overlap=torch.zeros(0)), torch.tensor(1.0))


def test_it_requests_overlaps():
    assert build().uses_overlap and not ClassificationLoss(make_info(COUNTS)).uses_overlap
