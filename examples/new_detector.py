"""A new detector for all losses but PISA, QFL and VFL: one level, and one positive cell for each object.

    python -m examples.new_detector

A detector has three methods: ``forward`` and ``decode`` do not receive targets, and ``losses`` does not decode. The argument ``loss``
creates its classification loss, so FL, AFL and OHEM need no code here.

To use the detector on the command line, copy this file to detectors/mine.py, add the line ``from detectors.mine import CentreCell`` to
the end of detectors/__init__.py, and write conf/detector/mine.yaml:

    # @package _global_
    family: dense   # the transforms of the data set: dense or heatmap
    detector:
      _target_: detectors.CentreCell
      channels: ${pyramid.channels}
      max_detections: ${dataset.max_detections}

    python -m scripts.train detector=mine loss=afl dataset=shapes initial_weights=null

Without ``initial_weights=null`` the features of the detector are pre-trained first, which takes minutes. Settings that differ between
regimes are entries of ``per_detector`` in conf/regime; conf/detector/fcos.yaml reads one.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from afl.losses import AdaptiveGradient, ClassificationLoss, ClassificationTarget, ClassWeights
from detectors import TinyBackbone
from detectors.boxes import aligned_giou, cell_centres, masked_sum
from detectors.contract import ClassCounts, Detections, LossFactory, Outputs, Targets
from detectors.fpn import FeaturePyramid
from detectors.heads import Tower, as_map, normal_init, prior_bias
from detectors.normalizer import mean_over_ranks
from detectors.postprocess import detect_on_levels, rows_of_images
from examples.scenes import scenes, train

ALPHA, PRIOR = 0.25, 0.01


class CentreCell(nn.Module):
    """The cell at an object's centre is its only positive. It predicts class logits and the distances to the four sides.

    Args:
        backbone: computes features by stride and lists their ``channels``.
        classes: training counts of the C classes.
        loss: creates the classification loss from the map's description.
        stride: of the one level.
        channels: of the pyramid and the head.
        max_detections: boxes kept per image.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        classes: ClassCounts,
        loss: LossFactory,
        stride: int = 8,
        channels: int = 32,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.num_classes, self.max_detections = len(classes), max_detections
        self.stride, self.strides = stride, (stride,)
        self.backbone = backbone
        self.pyramid = FeaturePyramid(
            in_channels=backbone.channels, strides=(stride,), channels=channels, batch_norm=True
        )
        self.tower = Tower(channels=channels, depth=1, norm="batch_per_level", levels=1)
        self.class_layer = normal_init(nn.Conv2d(channels, self.num_classes, 1), bias=prior_bias(PRIOR))
        self.box_layer = normal_init(nn.Conv2d(channels, 4, 1), bias=1.0)
        info = classes.map_info("classification", prior=PRIOR, alpha=ALPHA, dense_positives=False)
        self.classification = nn.ModuleDict({"classification": loss(info)})
        self.loss_weights = {"classification": 1.0, "box": 1.0}

    def class_layers(self) -> dict[str, list[nn.Conv2d]]:
        """The last layer of the classification map; its bias is the prior."""
        return {"classification": [self.class_layer]}

    def forward(self, images: Tensor) -> Outputs:
        """``logits`` (B, A, C), ``distances`` (B, A, 4) to left, top, right, bottom in strides, ``points`` (A, 2) in pixels."""
        (level,) = self.pyramid(self.backbone(images))
        features = self.tower(level, 0)
        return {
            "logits": as_map(self.class_layer(features), self.num_classes),
            "distances": as_map(self.box_layer(features), 4),
            "points": cell_centres(*level.shape[-2:], self.stride, level.device),
        }

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """The classification loss on all cells and GIoU on positives, both divided by the number of positives."""
        batch, cells = outputs["logits"].shape[:2]
        centre = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
        distance = torch.cdist(centre, outputs["points"].expand(batch, -1, -1))
        cell = distance.argmin(-1) + cells * torch.arange(batch, device=centre.device)[:, None]  # (B, M)
        element = torch.where(targets.valid, cell * self.num_classes + targets.labels, -1).flatten()
        # Two objects of one class with the same cell are one positive.
        element = element.unique()
        target = ClassificationTarget(
            num_classes=self.num_classes,
            image=torch.arange(batch, device=centre.device).repeat_interleave(cells),
            num_images=batch,
            positive=element,
        )
        normalizer = mean_over_ranks(target.num_positives())
        at = cell.flatten()
        found = self._boxes(outputs["points"][at % cells], outputs["distances"].flatten(0, 1)[at])
        overlap = aligned_giou(found, targets.boxes.flatten(0, 1))
        return {
            "classification": self.classification["classification"](
                outputs["logits"].flatten(0, 1), target, normalizer
            ),
            "box": masked_sum(1 - overlap, targets.valid.flatten()) / normalizer,
        }

    @torch.no_grad()
    def decode(self, outputs: Outputs, image_sizes: Tensor) -> list[Detections]:
        """The best cells of each image after non-maximum suppression."""
        return detect_on_levels(
            outputs,
            [len(outputs["points"])],
            image_sizes,
            num_classes=self.num_classes,
            per_image=("logits", "distances"),
            shared=("points",),
            scores=lambda level: level["logits"].float().sigmoid(),
            boxes=lambda level, at: self._boxes(level["points"][at], rows_of_images(level["distances"], at)),
            threshold=0.05,
            candidates=1000,
            iou=0.6,
            limit=self.max_detections,
        )

    def _boxes(self, points: Tensor, distances: Tensor) -> Tensor:
        """Decode distances (..., 4) in strides at points (..., 2) to boxes (..., 4) xyxy in pixels."""
        reach = distances.float().relu() * self.stride
        return torch.cat([points - reach[..., :2], points + reach[..., 2:]], -1)


def main(steps: int = 60) -> CentreCell:
    """Train it on the scenes with Adaptive Focal Loss (reconstruction); returns the detector."""
    torch.manual_seed(0)
    images, targets, classes = scenes()
    afl = partial(
        ClassificationLoss, chain={"class_weights": ClassWeights, "adaptive_gradient": AdaptiveGradient}
    )
    detector = CentreCell(backbone=TinyBackbone(), classes=classes, loss=afl)
    values = train(detector, images, targets, steps)
    found = detector.eval().decode(detector(images), targets.image_sizes)
    print(
        f"loss {values[0]:.2f} -> {values[-1]:.2f} in {steps} steps; {len(found[0].scores)} boxes in the first scene"
    )
    return detector


if __name__ == "__main__":
    main()
