"""Properties of all six detectors: gradients without objects, and the types of losses and detections."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from afl.losses import PADDING
from detectors import FCOS, CenterNet, CornerNet, ExtremeNet, ObjectBox, RetinaNet
from detectors.contract import weighted_sum
from tests.detectors.cases import small_network
from tests.detectors.keypoint_cases import random_targets

DETECTORS = (CenterNet, CornerNet, ExtremeNet, FCOS, ObjectBox, RetinaNet)


@pytest.mark.parametrize("count", [0, 4], ids=["no rows", "padding"])
@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("detector", DETECTORS)
def test_images_without_objects_give_every_parameter_a_finite_gradient(detector, num_classes, count):
    network = small_network(detector, num_classes)
    targets = random_targets(0, batch=1, count=count, num_classes=num_classes)
    targets = replace(targets, labels=torch.full_like(targets.labels, PADDING))
    losses = network.losses(network(torch.randn(1, 3, 64, 64)), targets)
    # ObjectBox has no negatives of classes: only the cells of an object have a class.
    learnt = {name for name, value in losses.items() if value > 0}
    assert learnt == set(network.classification) - {"class"}
    weighted_sum(losses, network.loss_weights).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("detector", DETECTORS)
def test_bfloat16_outputs_give_the_losses_and_detections_of_float32(detector):
    network = small_network(detector, 3)
    network.score_threshold = 0.0
    targets = random_targets(10, batch=2, count=3, num_classes=3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = network(torch.randn(2, 3, 64, 64))
    half = {name for name, value in outputs.items() if value.dtype == torch.bfloat16}
    assert half >= set(network.classification) & set(outputs) and half
    generator = torch.Generator().manual_seed(11)
    for name in half:
        outputs[name] = outputs[name] + torch.randn(outputs[name].shape, generator=generator).bfloat16()
    exact = outputs | {name: outputs[name].float() for name in half}
    for name, value in network.losses(outputs, targets).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, network.losses(exact, targets)[name], rtol=1e-5, atol=1e-6)
    for found, same in zip(
        network.decode(outputs, targets.image_sizes), network.decode(exact, targets.image_sizes), strict=True
    ):
        assert found.scores.dtype == found.boxes.dtype == torch.float32 and len(found.scores)
        assert torch.equal(found.scores, same.scores) and torch.equal(found.boxes, same.boxes)
