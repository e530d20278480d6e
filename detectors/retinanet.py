"""RetinaNet (Lin et al., Focal Loss for Dense Object Detection, ICCV 2017).

Head: two towers of 3x3 convolutions shared over the levels P3 to P7, which compute C class logits and 4 deltas for each of A anchors.
Targets: anchors with IoU >= 0.5 are positive (each object keeps its best anchor), anchors with IoU < 0.4 are negative, and the others
are ignored. Losses: the classification loss on all anchors, and an L1 loss on the deltas of the positives, both divided by the number
of positive anchors. Decode: the 1000 best pairs of each level, per-class NMS at 0.5.

Differences from the official code: anchors are centred on the locations of the map; crowd regions are ignored; the number of positives
is averaged over processes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afl.losses.target import ClassificationTarget
from detectors.anchors import (
    BETWEEN,
    anchors_in_ignored,
    base_anchors,
    decode_deltas,
    encode_deltas,
    grid_anchors,
    match_anchors,
)
from detectors.boxes import aligned_iou, masked_sum
from detectors.contract import ClassCounts, Detections, LossFactory, Outputs, Targets
from detectors.dense import Positives, pyramid_and_towers
from detectors.heads import as_map, normal_init, prior_bias
from detectors.normalizer import mean_over_ranks
from detectors.postprocess import detect_on_levels, rows_of_images
from detectors.rows import rows_at


class RetinaNet(nn.Module):
    """One-stage detector on anchors.

    Args:
        backbone: computes features by stride and lists their ``channels``.
        classes: training counts of the C classes.
        loss: creates the classification loss from the map's description.
        strides: pyramid levels.
        channels, tower_depth, norm, pyramid_batch_norm: size of pyramid and towers.
        anchor_size: side of an anchor as a multiple of its level's stride.
        anchor_ratios, anchor_scales: ratios height / width and extra scales; A is their product.
        prior: initial probability of every element.
        alpha: balance of positives and negatives in the loss.
        box_weight: weight of the box loss in the sum.
        score_threshold, candidates_per_level, nms_iou, max_detections: decoding.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        classes: ClassCounts,
        loss: LossFactory,
        strides: tuple[int, ...] = (8, 16, 32, 64, 128),
        channels: int = 256,
        tower_depth: int = 4,
        norm: str = "none",
        pyramid_batch_norm: bool = False,
        anchor_size: float = 4.0,
        anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        anchor_scales: tuple[float, ...] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
        prior: float = 0.01,
        alpha: float = 0.25,
        box_weight: float = 1.0,
        score_threshold: float = 0.05,
        candidates_per_level: int = 1000,
        nms_iou: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.num_classes, self.strides = len(classes), tuple(strides)
        self.score_threshold, self.candidates_per_level = score_threshold, candidates_per_level
        self.nms_iou, self.max_detections = nms_iou, max_detections
        self.loss_weights = {"classification": 1.0, "box": box_weight}
        self.backbone = backbone
        self.pyramid, self.class_tower, self.box_tower = pyramid_and_towers(
            backbone,
            strides=self.strides,
            channels=channels,
            tower_depth=tower_depth,
            norm=norm,
            pyramid_batch_norm=pyramid_batch_norm,
        )
        for i, s in enumerate(self.strides):
            base = base_anchors(anchor_size * s, anchor_ratios, anchor_scales)
            self.register_buffer(f"base_anchors_{i}", base, persistent=False)
        per_cell = len(anchor_ratios) * len(anchor_scales)
        self.class_layer = normal_init(
            nn.Conv2d(channels, per_cell * self.num_classes, 3, padding=1), bias=prior_bias(prior)
        )
        self.box_layer = normal_init(nn.Conv2d(channels, per_cell * 4, 3, padding=1))
        info = classes.map_info("classification", prior=prior, alpha=alpha, dense_positives=True)
        self.classification = nn.ModuleDict({"classification": loss(info)})

    def class_layers(self) -> dict[str, list[nn.Conv2d]]:
        """The last layers of each classification map; their bias is the prior."""
        return {"classification": [self.class_layer]}

    def forward(self, images: Tensor) -> Outputs:
        """Compute raw outputs of images (B, 3, H, W), concatenated over the levels: ``logits`` (B, A, C), ``deltas`` (B, A, 4),
        ``anchors`` (A, 4) and ``level_sizes`` (L,), the number of anchors on each level (on the CPU)."""
        levels = self.pyramid(self.backbone(images))
        logits, deltas, anchors = [], [], []
        for i, (x, stride) in enumerate(zip(levels, self.strides, strict=True)):
            logits.append(as_map(self.class_layer(self.class_tower(x, i)), self.num_classes))
            deltas.append(as_map(self.box_layer(self.box_tower(x, i)), 4))
            anchors.append(grid_anchors(self.get_buffer(f"base_anchors_{i}"), *x.shape[-2:], stride))
        return {
            "logits": torch.cat(logits, 1),
            "deltas": torch.cat(deltas, 1),
            "anchors": torch.cat(anchors),
            "level_sizes": torch.tensor([len(level) for level in anchors]),
        }

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Targets) -> tuple[ClassificationTarget, Positives]:
        """The map's target, and the positive anchors."""
        anchors = outputs["anchors"]
        match, overlap = match_anchors(anchors, targets.boxes, targets.valid)
        ignored = (match == BETWEEN) | (
            (match < 0) & anchors_in_ignored(anchors, targets.boxes, targets.ignored_boxes)
        )
        positives = Positives.of(match, targets, most=match.numel())
        target = positives.target(
            targets,
            num_classes=self.num_classes,
            ignored=ignored,
            overlap=self._overlap(outputs, positives)
            if self.classification["classification"].uses_overlap
            else None,
            location_overlap=overlap.flatten(),
        )
        return target, positives

    def _deltas(self, outputs: Outputs, positives: Positives) -> Tensor:
        return rows_at(outputs["deltas"].flatten(0, 1), positives.location, distinct=True)

    def _overlap(self, outputs: Outputs, positives: Positives) -> Tensor:
        found = decode_deltas(outputs["anchors"][positives.place], self._deltas(outputs, positives))
        return aligned_iou(found, positives.boxes)

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """``classification`` and ``box``, each divided by the number of positive anchors."""
        target, positives = self.assign(outputs, targets)
        normalizer = mean_over_ranks(target.num_positives())
        wanted = encode_deltas(outputs["anchors"][positives.place], positives.boxes)
        distance = (self._deltas(outputs, positives) - wanted).abs()
        box = masked_sum(distance, positives.present.unsqueeze(1)) / normalizer
        localization = (self.loss_weights["box"] * box).detach()
        classification = self.classification["classification"](
            outputs["logits"].flatten(0, 1), target, normalizer, localization=localization
        )
        return {"classification": classification, "box": box}

    @torch.no_grad()
    def decode(self, outputs: Outputs, image_sizes: Tensor) -> list[Detections]:
        """Boxes of each image: threshold, best pairs per level, deltas, per-class NMS."""
        return detect_on_levels(
            outputs,
            outputs["level_sizes"].tolist(),
            image_sizes,
            num_classes=self.num_classes,
            per_image=("logits", "deltas"),
            shared=("anchors",),
            scores=lambda level: level["logits"].float().sigmoid(),
            boxes=lambda level, at: decode_deltas(
                level["anchors"][at], rows_of_images(level["deltas"], at).float()
            ),
            threshold=self.score_threshold,
            candidates=self.candidates_per_level,
            iou=self.nms_iou,
            limit=self.max_detections,
        )
