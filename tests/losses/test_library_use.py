"""Adaptive Focal Loss in torchvision's RetinaNet, compared with the stated formula in NumPy and with torchvision's loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection import retinanet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

from afl.losses import AdaptiveFocalLoss, sigmoid_focal_loss

COUNTS = torch.tensor([500.0, 3.0])


# ---- the README's ten lines ------------------------------------------------------------------------------


class AdaptiveHead(retinanet.RetinaNetClassificationHead):
    """torchvision's classification head with another loss on the anchors that torchvision matched."""

    def compute_loss(self, targets, head_outputs, matched_idxs):
        total = 0.0
        for target, logits, match in zip(targets, head_outputs["cls_logits"], matched_idxs, strict=True):
            wanted = torch.zeros_like(logits)
            positive = match >= 0
            wanted[positive, target["labels"][match[positive]]] = 1.0
            kept = match != self.BETWEEN_THRESHOLDS
            total += self.loss(logits[kept], wanted[kept]) / positive.sum().clamp(min=1)
        return total / len(targets)


# ---------------------------------------------------------------------------------------------------------------------


class Pyramid(torch.nn.Module):
    """Two small levels at strides 4 and 8."""

    out_channels = 16

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 16, 5, stride=4, padding=2)
        self.second = torch.nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.pyramid = FeaturePyramidNetwork([16, 16], 16)

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.pyramid({"0": x, "1": F.relu(self.second(x))})


def model_with(loss: torch.nn.Module) -> retinanet.RetinaNet:
    torch.manual_seed(0)
    anchors = AnchorGenerator(((12,), (24,)), ((1.0,),) * 2)
    model = retinanet.RetinaNet(
        Pyramid(), num_classes=2, min_size=64, max_size=64, anchor_generator=anchors, image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
    )  # fmt: skip
    model.head.classification_head = AdaptiveHead(16, 1, 2)
    model.head.classification_head.loss = loss
    return model


@pytest.fixture(scope="module")
def scenes():
    """Bright squares of the frequent class and dark squares of the rare class on noise."""
    generator = torch.Generator().manual_seed(1)
    images, targets = [], []
    for i in range(4):
        image = 0.5 + 0.05 * torch.randn(3, 64, 64, generator=generator)
        boxes = torch.tensor(
            [[4.0 + 6 * i, 6.0, 18.0 + 6 * i, 20.0], [30.0, 34.0 + 2 * i, 42.0, 46.0 + 2 * i]]
        )
        labels = torch.tensor([0, 1 if i == 0 else 0])
        for box, label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            image[:, box[1] : box[3], box[0] : box[2]] = 0.0 if label else 1.0
        images.append(image)
        targets.append({"boxes": boxes, "labels": labels})
    return images, targets


def stated(logits: np.ndarray, wanted: np.ndarray, weights: np.ndarray, kappa: float) -> float:
    """The sum of A w alpha_t g^2 BCE with A = 1 / (1 + kappa u), from the definitions, one element at a time."""
    total = 0.0
    for row, goal in zip(logits.astype(float), wanted, strict=True):
        for z, y, w in zip(row, goal, weights, strict=True):
            p = 1 / (1 + np.exp(-z))
            g, alpha, w = (1 - p, 0.25, w) if y else (p, 0.75, 1.0)
            cross_entropy = -np.log(1 - g)
            u = w * g**2 * (g + 2 * (1 - g) * cross_entropy)
            total += w * alpha * g**2 * cross_entropy / (1 + kappa * u)
    return total


def test_the_first_step_equals_the_stated_formula_on_the_anchors_that_torchvision_matched(
    scenes, monkeypatch
):
    images, targets = scenes
    loss = AdaptiveFocalLoss(COUNTS, reduction="sum")
    model = model_with(loss).train()
    seen = []
    monkeypatch.setattr(loss, "forward", lambda z, y, real=loss.forward: seen.append((z, y)) or real(z, y))
    found = model(images, targets)["classification"]
    effective = (1 - 0.999 ** COUNTS.double().numpy()) / (1 - 0.999)
    # The factor that gives weights of at most 5 a mean of 1 over instances, by bisection.
    low, high, counts = 0.0, 1e6, COUNTS.double().numpy()
    for _ in range(100):
        factor = (low + high) / 2
        weights = np.minimum(factor / effective, 5.0)
        low, high = (factor, high) if (counts * weights).sum() < counts.sum() else (low, factor)
    assert weights[1] == 5.0 and weights.min() < 1 and len(seen) == 4
    # kappa of an untrained head is 1; the loss of each image updates the running mean g of the positives, with momentum 0.99.
    ghat, expected = 0.99, 0.0
    for z, y in seen:
        kappa = np.clip((ghat - 0.5) / 0.49, 0, 1)
        z, y = z.detach().numpy(), y.numpy()
        expected += stated(z, y, weights, kappa) / y.sum() / len(images)
        ghat = 0.99 * ghat + 0.01 * float((1 - 1 / (1 + np.exp(-z[y == 1].astype(float)))).mean())
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_head_with_focal_loss_equals_torchvisions(scenes):
    images, targets = scenes

    class Focal(torch.nn.Module):
        def forward(self, logits, wanted):
            return sigmoid_focal_loss(logits, wanted, reduction="sum")

    ours = model_with(Focal()).train()
    theirs = model_with(Focal()).train()
    plain = retinanet.RetinaNetClassificationHead(16, 1, 2)
    plain.load_state_dict(ours.head.classification_head.state_dict())
    theirs.head.classification_head = plain
    theirs.backbone.load_state_dict(ours.backbone.state_dict())
    a, b = (model(images, targets)["classification"].item() for model in (ours, theirs))
    assert a == pytest.approx(b, rel=1e-5)


def test_a_few_steps_lower_the_loss_and_open_the_gate(scenes):
    images, targets = scenes
    loss = AdaptiveFocalLoss(COUNTS, reduction="sum")
    model = model_with(loss).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for _ in range(60):
        total = sum(model(images, targets).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(total.item())
    assert np.mean(values[-5:]) < 0.9 * np.mean(values[:5])
    assert loss.kappa < 1.0 and "head.classification_head.loss.class_weights" in model.state_dict()
