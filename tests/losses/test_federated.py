"""Federated loss compared with sampling and dense masking in loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from afl.losses import ClassificationLoss, ElementWeights, FederatedSampling
from afl.losses.reference import alpha_t, dense_target, quality_focal_loss
from tests.losses.cases import loss_and_gradient, make_info, plain_target, random_logits, random_target

COUNTS = [900.0, 400.0, 100.0, 25.0, 4.0, 1.0]


def build(counts=COUNTS, **options) -> ClassificationLoss:
    info = make_info([7.0] * len(counts), images=counts)
    return ClassificationLoss(info, chain={"federated": lambda info: FederatedSampling(info, **options)})


def own_classes(target) -> list[set[int]]:
    own = [set() for _ in range(target.num_images)]
    for index in target.positive.tolist():
        if index >= 0:
            own[int(target.image[index // target.num_classes])].add(index % target.num_classes)
    return own


@pytest.mark.parametrize("options", [{"scaled": 0}, {"scaled": 20, "ignored": True, "verified": True}])
def test_loss_is_focal_loss_without_the_negatives_of_classes_outside_the_sample(options):
    loss = build(size=3)
    link = loss.chain["federated"]
    for seed in range(3):
        target = random_target(seed, classes=6, **options)
        logits = random_logits(seed, target)
        kept = link.classes(target)
        for image, classes in enumerate(own_classes(target)):
            chosen = set(kept[image].nonzero().flatten().tolist())
            assert classes <= chosen and len(chosen) == max(3, len(classes))
        y, weight = dense_target(target, ElementWeights(alpha=0.25, gamma=2.0), logits)
        for row, image in enumerate(target.image.tolist()):
            for label in range(6):
                if y[row, label] == 0 and not kept[image, label]:
                    weight[row, label] = 0.0
        each = weight * alpha_t(y, 0.25) * quality_focal_loss(logits, y, 2.0)
        expected = loss_and_gradient(each.sum() / 7.0, logits)
        actual = loss_and_gradient(loss(logits, target, torch.tensor(7.0).double()), logits)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-15)
        loss.update()


def test_others_are_drawn_by_the_square_root_of_their_frequency():
    """One of five classes is drawn in addition to the image's classes, with odds of 20 : 10 : 5 : 2 : 1."""
    link = build(size=2).chain["federated"]
    target = plain_target(3, 6, [0])
    seen = torch.zeros(6)
    for _ in range(4000):
        seen += link.classes(target)[0]
        link.update()
    chance = torch.tensor([20.0, 10.0, 5.0, 2.0, 1.0])
    assert seen[0] == 4000
    torch.testing.assert_close(seen[1:] / 4000, chance / chance.sum(), rtol=0, atol=0.03)


def test_the_sample_size_depends_on_the_number_of_classes_up_to_fifty():
    sizes = {classes: FederatedSampling(make_info([9.0] * classes)).size for classes in (1, 30, 54, 1203)}
    assert sizes == {1: 1, 30: 10, 54: 18, 1203: 50}


def test_a_map_of_one_class_and_an_image_without_objects_keep_their_negatives():
    target = plain_target(4, 1, [])
    logits = torch.zeros(4, 1, requires_grad=True)
    found = loss_and_gradient(build([5.0])(logits, target, torch.tensor(1.0)), logits)
    expected = loss_and_gradient(
        ClassificationLoss(make_info([5.0]))(logits, target, torch.tensor(1.0)), logits
    )
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    empty = replace(random_target(0, positives=0, classes=6), verified=None)
    assert build().chain["federated"].classes(empty).sum(1).tolist() == [2, 2]
