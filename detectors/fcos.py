"""FCOS (Tian et al., FCOS: Fully Convolutional One-Stage Object Detection, ICCV 2019; improved in TPAMI 2020).

Head: two towers of 3x3 convolutions shared over the levels P3 to P7 (P6 from P5). Each location has C class logits and, on the box
branch, the distances to the four sides of the box and its centre-ness. Targets: a location is positive for an object if it is inside
the box and within 1.5 strides of the box's centre, and if its distance to the farthest side is in the range of its level. If a location
is positive for several objects, the smallest one is chosen. Losses: the classification loss on all locations, GIoU and the binary
cross-entropy of the centre-ness on positives, all divided by the number of positive locations. Decode: score = sqrt(class x
centre-ness), the 1000 best pairs of each level, per-class NMS at 0.6.

Differences from the official code: distances are measured in strides and are the output of a ReLU, so there is no learned scale per
level; all boxes have equal weight instead of a weight by centre-ness (both as in torchvision and detectron2); a farthest side exactly on
the border of two level ranges belongs only to the lower level; crowd regions are ignored; the number of positives is averaged over
processes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afl.losses.target import ClassificationTarget
from detectors.boxes import (
    aligned_giou,
    aligned_iou,
    blocks_of_objects,
    box_area,
    cell_centres,
    cells_inside,
    masked_sum,
)
from detectors.contract import ClassCounts, Detections, LossFactory, Outputs, Targets
from detectors.dense import Positives, pyramid_and_towers
from detectors.heads import as_map, normal_init, prior_bias
from detectors.normalizer import mean_over_ranks
from detectors.postprocess import detect_on_levels, rows_of_images
from detectors.rows import rows_at

BACKGROUND = -1


class FCOS(nn.Module):
    """One-stage detector with one prediction per location.

    Args:
        backbone: computes features by stride and lists their ``channels``.
        classes: training counts of the C classes.
        loss: creates the classification loss from the map's description.
        strides: pyramid levels, each with twice the stride of the one before it.
        channels, tower_depth, norm, pyramid_batch_norm: size of pyramid and towers.
        center_radius: largest distance of a positive location from the box's centre, in strides.
        level_reach: largest distance to the farthest side that a level learns, in strides; the next level learns larger
            distances, and the last level has no limit. 8 gives the paper's 64, 128, 256 and 512 pixels.
        prior: initial probability of every element.
        alpha: balance of positives and negatives in the loss.
        box_weight, centerness_weight: weights in the sum.
        score_threshold: lower limit of sqrt(class x centre-ness), exclusive; the paper's 0.05 applies to the class score.
        candidates_per_level, nms_iou, max_detections: decoding.
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
        norm: str = "group",
        pyramid_batch_norm: bool = False,
        center_radius: float = 1.5,
        level_reach: float = 8.0,
        prior: float = 0.01,
        alpha: float = 0.25,
        box_weight: float = 1.0,
        centerness_weight: float = 1.0,
        score_threshold: float = 0.2,
        candidates_per_level: int = 1000,
        nms_iou: float = 0.6,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.num_classes, self.strides = len(classes), tuple(strides)
        self.center_radius, self.level_reach = center_radius, level_reach
        self.score_threshold, self.candidates_per_level = score_threshold, candidates_per_level
        self.nms_iou, self.max_detections = nms_iou, max_detections
        self.loss_weights = {"classification": 1.0, "box": box_weight, "centerness": centerness_weight}
        self.backbone = backbone
        self.pyramid, self.class_tower, self.box_tower = pyramid_and_towers(
            backbone,
            strides=self.strides,
            channels=channels,
            tower_depth=tower_depth,
            norm=norm,
            pyramid_batch_norm=pyramid_batch_norm,
            extra_from="pyramid",
        )
        self.class_layer = normal_init(
            nn.Conv2d(channels, self.num_classes, 3, padding=1), bias=prior_bias(prior)
        )
        self.box_layer = normal_init(nn.Conv2d(channels, 4, 3, padding=1))
        self.centerness_layer = normal_init(nn.Conv2d(channels, 1, 3, padding=1))
        info = classes.map_info("classification", prior=prior, alpha=alpha, dense_positives=True)
        self.classification = nn.ModuleDict({"classification": loss(info)})

    def class_layers(self) -> dict[str, list[nn.Conv2d]]:
        """The last layers of each classification map; their bias is the prior."""
        return {"classification": [self.class_layer]}

    def forward(self, images: Tensor) -> Outputs:
        """Compute raw outputs of images (B, 3, H, W), concatenated over the levels.

        ``logits`` (B, A, C); ``distances`` (B, A, 4) to the left, top, right and bottom side in strides, before the ReLU;
        ``centerness`` (B, A) logits; ``points`` (A, 2) x, y of the locations in pixels; ``strides`` (A,) of their levels;
        ``level_sizes`` (L,), the number of locations on each level (on the CPU).
        """
        levels = self.pyramid(self.backbone(images))
        logits, distances, centerness, points, strides = [], [], [], [], []
        for i, (x, stride) in enumerate(zip(levels, self.strides, strict=True)):
            box_features = self.box_tower(x, i)
            logits.append(as_map(self.class_layer(self.class_tower(x, i)), self.num_classes))
            distances.append(as_map(self.box_layer(box_features), 4))
            centerness.append(as_map(self.centerness_layer(box_features), 1).squeeze(-1))
            points.append(cell_centres(*x.shape[-2:], stride, x.device))
            strides.append(torch.full((points[-1].shape[0],), float(stride), device=x.device))
        return {
            "logits": torch.cat(logits, 1),
            "distances": torch.cat(distances, 1),
            "centerness": torch.cat(centerness, 1),
            "points": torch.cat(points),
            "strides": torch.cat(strides),
            "level_sizes": torch.tensor([len(level) for level in points]),
        }

    @torch.no_grad()
    def match(self, outputs: Outputs, targets: Targets) -> Tensor:
        """The object of each location: (B, A) int64, its position in its image, or ``BACKGROUND``. Of several eligible objects the
        smallest is taken."""
        strides = outputs["strides"]
        x, y = outputs["points"].t().contiguous()
        lower, upper = self._level_ranges(strides)
        shape = (len(targets.boxes), len(strides))
        smallest = torch.full(shape, math.inf, device=x.device)
        match = torch.full(shape, BACKGROUND, device=x.device)
        for images, first, boxes in blocks_of_objects(targets.boxes, targets.valid, len(strides)):
            x1, y1, x2, y2 = (side.unsqueeze(-1) for side in boxes.unbind(-1))
            left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y
            # An empty box contains no point.
            nearest = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom))
            farthest = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
            off_centre = torch.maximum((left - right).abs_(), (top - bottom).abs_()).div_(2)
            candidate = (
                (nearest > 0)
                & (off_centre < self.center_radius * strides)
                & (farthest > lower)
                & (farthest <= upper)
            )
            area, which = torch.where(candidate, box_area(boxes).unsqueeze(-1), math.inf).min(1)
            match[images] = torch.where(area < smallest[images], which + first, match[images])
            smallest[images] = torch.minimum(smallest[images], area)
        return match

    def _level_ranges(self, strides: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper limit (A,) of the distance from a location to the farthest side, in pixels: (lower, upper]. The
        pyramid only accepts strides that double, so half the reach of a level is the reach of the level before it."""
        reach = self.level_reach * strides
        lower = torch.where(strides == self.strides[0], 0.0, reach / 2)
        return lower, torch.where(strides == self.strides[-1], math.inf, reach)

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Targets) -> tuple[ClassificationTarget, Positives]:
        """The map's target, and the positive locations."""
        match = self.match(outputs, targets)
        (batch, num_cells), count = match.shape, targets.labels.shape[1]
        # An open interval of 2 r strides contains at most ceil(2 r) locations.
        most = count * math.ceil(2 * self.center_radius) ** 2 * len(self.strides)
        positives = Positives.of(match, targets, most=batch * min(num_cells, most))
        target = positives.target(
            targets,
            num_classes=self.num_classes,
            ignored=(match < 0) & cells_inside(targets.boxes, targets.ignored_boxes, outputs["points"]),
            overlap=aligned_iou(self._boxes(outputs, positives), positives.boxes)
            if self.classification["classification"].uses_overlap
            else None,
        )
        return target, positives

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """``classification``, ``box`` and ``centerness``, each divided by the number of positive locations."""
        target, positives = self.assign(outputs, targets)
        normalizer = mean_over_ranks(target.num_positives())
        distance = 1 - aligned_giou(self._boxes(outputs, positives), positives.boxes)
        box = masked_sum(distance, positives.present) / normalizer
        centerness = F.binary_cross_entropy_with_logits(
            rows_at(outputs["centerness"].flatten(), positives.location, distinct=True),
            box_centerness(outputs["points"][positives.place], positives.boxes),
            reduction="none",
        )
        centerness = masked_sum(centerness, positives.present) / normalizer
        localization = self.loss_weights["box"] * box + self.loss_weights["centerness"] * centerness
        classification = self.classification["classification"](
            outputs["logits"].flatten(0, 1), target, normalizer, localization=localization.detach()
        )
        return {"classification": classification, "box": box, "centerness": centerness}

    def _boxes(self, outputs: Outputs, positives: Positives) -> Tensor:
        """Boxes (P, 4) predicted at the positives."""
        distances = rows_at(outputs["distances"].flatten(0, 1), positives.location, distinct=True)
        cell = positives.place
        return boxes_from_distances(outputs["points"][cell], outputs["strides"][cell], distances)

    @torch.no_grad()
    def decode(self, outputs: Outputs, image_sizes: Tensor) -> list[Detections]:
        """Boxes of each image: threshold, best pairs per level, per-class NMS."""
        return detect_on_levels(
            outputs,
            outputs["level_sizes"].tolist(),
            image_sizes,
            num_classes=self.num_classes,
            per_image=("logits", "centerness", "distances"),
            shared=("points", "strides"),
            scores=lambda level: (
                level["logits"].float().sigmoid() * level["centerness"].float().sigmoid().unsqueeze(-1)
            ).sqrt(),
            boxes=lambda level, at: boxes_from_distances(
                level["points"][at], level["strides"][at], rows_of_images(level["distances"], at)
            ),
            threshold=self.score_threshold,
            candidates=self.candidates_per_level,
            iou=self.nms_iou,
            limit=self.max_detections,
        )


def boxes_from_distances(points: Tensor, strides: Tensor, distances: Tensor) -> Tensor:
    """Decode raw distances (..., 4) at points (..., 2) with strides (...) to boxes (..., 4) xyxy in pixels, float32."""
    reach = F.relu(distances.float()) * strides.unsqueeze(-1)
    return torch.cat([points - reach[..., :2], points + reach[..., 2:]], -1)


def box_centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """Centre-ness (P,) of points (P, 2) in boxes (P, 4) xyxy: 1 at the centre, 0 on a side and outside.

    sqrt(min(l, r) / max(l, r) x min(t, b) / max(t, b)) (FCOS, equation 3).
    """
    low, high = points - boxes[:, :2], boxes[:, 2:] - points
    ratio = torch.minimum(low, high) / torch.maximum(low, high).clamp(min=1e-9)
    return ratio.clamp(min=0).prod(1).sqrt()
