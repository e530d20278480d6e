"""Small detectors and targets, shared by the tests of the detectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afl.losses import PADDING, ClassificationLoss, MapInfo
from detectors.backbone import TinyBackbone
from detectors.contract import ClassCounts, Targets


def small_network(detector: type[nn.Module], num_classes: int, **options) -> nn.Module:
    """A detector with focal loss and few channels, for images of at least 64 pixels."""
    heat_maps = detector.__name__ in ("CenterNet", "CornerNet", "ExtremeNet")
    own = {"head_channels": 8} if heat_maps else {"strides": (4, 8, 16), "tower_depth": 1}
    common = {
        "backbone": TinyBackbone(widths=(4, 4, 8, 8)),
        "classes": ClassCounts(torch.ones(num_classes), torch.ones(num_classes)),
        "loss": ClassificationLoss,
        "channels": 8,
    }
    return detector(**common | own | options)


def class_parameters(detector: nn.Module) -> set[int]:
    """Ids of the parameters of the class layers. Whether there is an object has nothing to do with its class."""
    layers = [layer for name, own in detector.class_layers().items() for layer in own if name != "objectness"]
    return {id(parameter) for layer in layers for parameter in layer.parameters()}


def make_targets(boxes, labels, ignored=None, size=(96, 96)) -> Targets:
    """Lists per image, padded."""
    most = max(len(b) for b in boxes)
    targets = Targets(
        boxes=torch.zeros(len(boxes), most, 4),
        labels=torch.full((len(boxes), most), PADDING),
        ignored=torch.zeros(len(boxes), most, dtype=torch.bool),
        image_sizes=torch.tensor([size] * len(boxes)),
    )
    for i, (b, c) in enumerate(zip(boxes, labels, strict=True)):
        if len(b):
            targets.boxes[i, : len(b)] = torch.as_tensor(b)
            targets.labels[i, : len(b)] = torch.as_tensor(c)
            if ignored:
                targets.ignored[i, : len(b)] = torch.as_tensor(ignored[i])
    return targets


class Curious(ClassificationLoss):
    """Asks for overlaps and records its inputs."""

    def __init__(self, info: MapInfo) -> None:
        super().__init__(info)
        self.uses_overlap = True

    def forward(self, logits, target, normalizer, localization=None) -> Tensor:
        self.call = logits.detach(), target, normalizer, localization
        return super().forward(logits, target, normalizer)
