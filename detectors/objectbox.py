"""ObjectBox (Zand et al., ObjectBox: From Centers to Boxes for Anchor-Free Object Detection, ECCV 2022).

Head: two towers shared over the levels P3 to P5, followed by separate 1x1 convolutions for each level that compute one objectness
logit, four distances and C class logits for every cell. Targets: on *each* level, four cells learn an object of any size: the cell with
its centre, and the nearest neighbours across, down and diagonal. This gives 12 positives per object. A cell (x, y) measures left and
top from its lower right corner, and right and bottom from its upper left corner, in cells:

    left = (x + 1) - x1,   top = (y + 1) - y1,   right = x2 - x,   bottom = y2 - y

They are predicted as (2 sigmoid)^2 2^i on level i, which is at most 4 x 2^i cells: 32, 128 and 512 pixels at strides 8, 16 and 32.
Losses: 1 - SDIoU of the distances, and two classification maps. Decode: score = objectness x class, the 1000 best pairs of each
level, per-class NMS at 0.6.

The paper uses cross-entropy on two maps. Here each map has an instance of the classification loss.

- ``objectness`` has all cells and one class. It separates foreground from background, so focal terms, gates and hard sampling act here.
  The soft target of a positive is its detached SDIoU, clamped to [0, 1], so that a level unlearns objects beyond its reach. The loss is
  divided by the number of positive cells, because a mean over all cells would make a focal loss vanish. With one class there are no class
  weights. A gate that depends on |p - y| of the positives opens within 150 steps, because y is small while the boxes are poor.
- ``class`` has only the positive cells and C classes. It separates frequent from rare classes, so class weights act here. Each claim of a
  cell by an object is a separate location, whose object's class is positive and whose other classes are negative. The loss is divided by
  the number of claims, so the initial loss is about -ln(prior), as for an image classifier.

Differences from the official code: backbone, pyramid and towers are those of the other detectors instead of CSPDarknet; SDIoU has its
inner and outer sides clamped at 0 (unclamped, it exceeds 1 for tiny predictions); neighbour cells completely outside a small object are
background, because a sigmoid cannot predict their negative distances; the objectness target of a cell that several objects claim is the
largest of their qualities instead of the last one written; all levels have one prior instead of 8 objects per 640 x 640 pixels; levels
are not balanced; each object's cells are counted once instead of twice; crowd regions are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from afl.losses.sampling import nonzero_padded
from afl.losses.target import PADDING, ClassificationTarget
from detectors.boxes import aligned_iou, cell_centres, cells_inside, masked_sum
from detectors.contract import ClassCounts, Detections, LossFactory, Outputs, Targets
from detectors.dense import pyramid_and_towers
from detectors.heads import as_map, normal_init, prior_bias
from detectors.normalizer import mean_over_ranks
from detectors.postprocess import detect_on_levels, rows_of_images
from detectors.rows import rows_at

CELLS_PER_LEVEL = 4


@dataclass(frozen=True)
class Claims:
    """P distinct claims of a cell by an object, sorted by image; padded where ``present`` is false.

    Attributes:
        present: (P,) bool.
        location: (P,) int64, position of the cell in the flattened (B * A) cells.
        object: (P,) int64, position of the object in the flattened (B * M) list.
        image: (P,) int64, non-decreasing.
        distances: (P, 4) from the cell to the left, top, right and bottom of the object, in cells.
    """

    present: Tensor
    location: Tensor
    object: Tensor
    image: Tensor
    distances: Tensor

    @property
    def padded_location(self) -> Tensor:
        """(P,) int64, ``location`` with ``PADDING`` where ``present`` is false."""
        return torch.where(self.present, self.location, PADDING)


class ObjectBox(nn.Module):
    """Predicts every object on every level, at the cells around its centre.

    Args:
        backbone: computes features by stride and lists their ``channels``.
        classes: training counts of the C classes.
        loss: creates the classification loss of each map from the map's description.
        strides: pyramid levels.
        channels, tower_depth, norm, pyramid_batch_norm: size of pyramid and tower.
        reach: largest distance on the first level, in cells; it doubles with each further level.
        prior: initial objectness of every cell.
        class_prior: initial probability of every class; None for the official 0.6 / (C - 0.39), at most 0.3.
        alpha: balance of positives and negatives in the objectness; -1, as in the paper, for none.
        class_alpha: the same for the classes.
        class_weight, box_weight: weights in the sum, in which objectness has weight 1. They were chosen on small images, because
            the paper's weights apply to means over cells.
        score_threshold: lower limit of objectness x class, exclusive.
        candidates_per_level, nms_iou, max_detections: decoding.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        classes: ClassCounts,
        loss: LossFactory,
        strides: tuple[int, ...] = (8, 16, 32),
        channels: int = 256,
        tower_depth: int = 2,
        norm: str = "group",
        pyramid_batch_norm: bool = False,
        reach: float = 4.0,
        prior: float = 0.01,
        class_prior: float | None = None,
        alpha: float = -1.0,
        class_alpha: float = -1.0,
        class_weight: float = 2.0,
        box_weight: float = 4.0,
        score_threshold: float = 0.001,
        candidates_per_level: int = 1000,
        nms_iou: float = 0.6,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.num_classes, self.strides = len(classes), tuple(strides)
        self.reach = tuple(reach * 2**i for i in range(len(self.strides)))
        self.score_threshold, self.candidates_per_level = score_threshold, candidates_per_level
        self.nms_iou, self.max_detections = nms_iou, max_detections
        self.loss_weights = {"objectness": 1.0, "class": class_weight, "box": box_weight}
        self.backbone = backbone
        self.pyramid, self.class_tower, self.box_tower = pyramid_and_towers(
            backbone,
            strides=self.strides,
            channels=channels,
            tower_depth=tower_depth,
            norm=norm,
            pyramid_batch_norm=pyramid_batch_norm,
        )
        if class_prior is None:
            class_prior = min(0.6 / (self.num_classes - 0.39), 0.3)
        levels = len(self.strides)
        self.last_class_layers = _layers(levels, channels, self.num_classes, bias=prior_bias(class_prior))
        self.last_objectness_layers = _layers(levels, channels, 1, bias=prior_bias(prior))
        self.box_layers = _layers(levels, channels, 4)
        # The number of images with any object is unknown; the images with the most common class are a lower limit.
        objects = ClassCounts(classes.instances.sum(0, keepdim=True), classes.images.amax(0, keepdim=True))
        objectness = objects.map_info("objectness", prior=prior, alpha=alpha, dense_positives=True)
        by_class = classes.map_info("class", prior=class_prior, alpha=class_alpha, dense_positives=True)
        self.classification = nn.ModuleDict({"objectness": loss(objectness), "class": loss(by_class)})

    def class_layers(self) -> dict[str, list[nn.Conv2d]]:
        """The last layers of each classification map; their bias is the prior."""
        return {"objectness": list(self.last_objectness_layers), "class": list(self.last_class_layers)}

    def forward(self, images: Tensor) -> Outputs:
        """Compute raw outputs of images (B, 3, H, W), concatenated over the levels.

        ``objectness`` (B, A) and ``classes`` (B, A, C) logits; ``distances`` (B, A, 4) left, top, right, bottom before the
        activation; ``cells`` (A, 2) column, row; ``strides`` (A,) pixels per cell; ``reach`` (A,) largest distance in cells;
        ``level_shapes`` (L, 2), rows and columns of each level (on the CPU).
        """
        levels = self.pyramid(self.backbone(images))
        outputs: dict[str, list[Tensor]] = {
            name: [] for name in ("objectness", "classes", "distances", "cells", "strides", "reach")
        }
        for i, (x, stride, reach) in enumerate(zip(levels, self.strides, self.reach, strict=True)):
            box_features = self.box_tower(x, i)
            outputs["objectness"].append(as_map(self.last_objectness_layers[i](box_features), 1).squeeze(-1))
            outputs["classes"].append(
                as_map(self.last_class_layers[i](self.class_tower(x, i)), self.num_classes)
            )
            outputs["distances"].append(as_map(self.box_layers[i](box_features), 4))
            cells = cell_centres(*x.shape[-2:], 1, x.device) - 0.5
            outputs["cells"].append(cells)
            outputs["strides"].append(torch.full((cells.shape[0],), float(stride), device=x.device))
            outputs["reach"].append(torch.full((cells.shape[0],), reach, device=x.device))
        along = {"cells": 0, "strides": 0, "reach": 0}
        return {name: torch.cat(parts, along.get(name, 1)) for name, parts in outputs.items()} | {
            "level_shapes": torch.tensor([x.shape[-2:] for x in levels])
        }

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Targets) -> Claims:
        """Match cells with objects."""
        batch, count = targets.labels.shape
        num_cells, device = outputs["cells"].shape[0], targets.boxes.device
        locations, distances, present, start = [], [], [], 0
        for stride, (height, width) in zip(self.strides, outputs["level_shapes"].tolist(), strict=True):
            cells, reach, usable = cells_of_objects(targets.boxes / stride, height, width)
            locations.append(start + cells[..., 1] * width + cells[..., 0])
            distances.append(reach)
            present.append(usable & targets.valid.unsqueeze(-1))
            start += height * width
        chosen = torch.stack(present, 2).flatten()
        claim = nonzero_padded(chosen, chosen.numel())
        at = claim.clamp(min=0)
        item = torch.div(at, len(self.strides) * CELLS_PER_LEVEL, rounding_mode="floor")
        image = torch.div(item, max(count, 1), rounding_mode="floor")
        return Claims(
            present=claim >= 0,
            location=image * num_cells + torch.stack(locations, 2).flatten()[at].clamp(0, num_cells - 1),
            object=item,
            # Padding is at the end, so it is assigned to the last image.
            image=torch.where(claim >= 0, image, torch.full((), batch - 1, device=device)),
            distances=torch.stack(distances, 2).flatten(0, 3)[at],
        )

    @torch.no_grad()
    def objectness_target(
        self, outputs: Outputs, targets: Targets, claims: Claims, similarity: Tensor
    ) -> ClassificationTarget:
        """Target of the map of all cells, from the SDIoU (P,) of each claim.

        A cell with several claims uses the best of them; of equal claims, the first.
        """
        batch, num_cells = outputs["objectness"].shape
        quality = torch.where(claims.present, similarity.clamp(0, 1), -1.0)
        best = quality.new_full((batch * num_cells,), -1.0)
        best.scatter_reduce_(0, claims.location, quality, "amax")
        location = nonzero_padded(best >= 0, claims.location.numel())
        at, present = location.clamp(min=0), location >= 0
        in_ignored = cells_inside(
            targets.boxes, targets.ignored_boxes, (outputs["cells"] + 0.5) * outputs["strides"].unsqueeze(1)
        )
        number = torch.arange(claims.location.numel(), device=best.device)
        number = torch.where(claims.present & (quality == best[claims.location]), number, len(number))
        first = torch.full_like(best, len(number), dtype=torch.int64)
        first.scatter_reduce_(0, claims.location, number, "amin")
        winner = first[at].clamp(max=max(len(number) - 1, 0))
        return ClassificationTarget(
            num_classes=1,
            image=torch.arange(batch, device=best.device).repeat_interleave(num_cells),
            num_images=batch,
            positive=torch.where(present, location, PADDING),
            value=torch.where(present, best[at], 0.0),
            ignored=in_ignored.flatten() & (best < 0),
            overlap=self._overlap(outputs, targets, claims)[winner]
            if self.classification["objectness"].uses_overlap
            else None,
            object=torch.where(present, claims.object[winner], PADDING),
        )

    @torch.no_grad()
    def class_target(self, outputs: Outputs, targets: Targets, claims: Claims) -> ClassificationTarget:
        """Target of the map whose P locations are the claims."""
        row = torch.arange(claims.location.numel(), device=claims.location.device)
        label = targets.labels.flatten()[claims.object]
        return ClassificationTarget(
            num_classes=self.num_classes,
            image=claims.image,
            num_images=targets.labels.shape[0],
            positive=torch.where(claims.present, row * self.num_classes + label, PADDING),
            ignored=~claims.present,
            verified=targets.verified,
            overlap=self._overlap(outputs, targets, claims)
            if self.classification["class"].uses_overlap
            else None,
            object=torch.where(claims.present, claims.object, PADDING),
        )

    def _overlap(self, outputs: Outputs, targets: Targets, claims: Claims) -> Tensor:
        cell = claims.location % outputs["cells"].shape[0]
        boxes = boxes_from_distances(
            outputs["cells"][cell], outputs["strides"][cell], self._distances(outputs, claims)
        )
        return aligned_iou(boxes, targets.boxes.flatten(0, 1)[claims.object])

    def _distances(self, outputs: Outputs, claims: Claims) -> Tensor:
        """Predicted distances (P, 4) in cells, for each claim."""
        reach = outputs["reach"][claims.location % outputs["cells"].shape[0]]
        raw = rows_at(outputs["distances"].flatten(0, 1), claims.padded_location, distinct=False)
        return activate(raw, reach)

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """``objectness`` divided by the number of positive cells, ``class`` and ``box`` by the number of claims."""
        claims = self.assign(outputs, targets)
        count = mean_over_ranks(claims.present.sum())
        similarity = sdiou(self._distances(outputs, claims), claims.distances)
        box = masked_sum(1 - similarity, claims.present) / count
        localization = (self.loss_weights["box"] * box).detach()
        target = self.objectness_target(outputs, targets, claims, similarity.detach())
        objectness = self.classification["objectness"](
            outputs["objectness"].reshape(-1, 1),
            target,
            mean_over_ranks(target.num_positives()),
            localization=localization,
        )
        # Only one map receives the box loss; otherwise it would be counted twice.
        by_class = self.classification["class"](
            rows_at(outputs["classes"].flatten(0, 1), claims.padded_location, distinct=False),
            self.class_target(outputs, targets, claims),
            count,
        )
        return {"objectness": objectness, "class": by_class, "box": box}

    @torch.no_grad()
    def decode(self, outputs: Outputs, image_sizes: Tensor) -> list[Detections]:
        """Boxes of each image: threshold, best pairs per level, per-class NMS."""
        return detect_on_levels(
            outputs,
            outputs["level_shapes"].prod(1).tolist(),
            image_sizes,
            num_classes=self.num_classes,
            per_image=("objectness", "classes", "distances"),
            shared=("cells", "strides", "reach"),
            scores=lambda level: (
                level["objectness"].float().sigmoid().unsqueeze(-1) * level["classes"].float().sigmoid()
            ),
            boxes=lambda level, at: boxes_from_distances(
                level["cells"][at],
                level["strides"][at],
                activate(rows_of_images(level["distances"], at), level["reach"][at]),
            ),
            threshold=self.score_threshold,
            candidates=self.candidates_per_level,
            iou=self.nms_iou,
            limit=self.max_detections,
        )


def _layers(levels: int, channels: int, outputs: int, bias: float = 0.0) -> nn.ModuleList:
    return nn.ModuleList(normal_init(nn.Conv2d(channels, outputs, 1), bias=bias) for _ in range(levels))


def cells_of_objects(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The four cells of one level that each object claims (ObjectBox, 3.1 and 3.2).

    Args:
        boxes: (B, M, 4) xyxy in cells of the level; height, width: its rows and columns.

    Returns:
        cells: (B, M, 4, 2) int64 column, row of the cells: centre, across, down, diagonal.
        distances: (B, M, 4, 4) left, top, right, bottom in cells.
        usable: (B, M, 4) bool, false outside the map and where a distance is not positive.
    """
    low, high = boxes[..., None, :2], boxes[..., None, 2:]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    x, y = centre.floor().unbind(-1)
    across, down = torch.where(centre - centre.floor() < 0.5, -1.0, 1.0).unbind(-1)
    cells = torch.stack(
        [
            torch.stack([x, x + across, x, x + across], -1),
            torch.stack([y, y, y + down, y + down], -1),
        ],
        -1,
    )
    distances = torch.cat([cells + 1 - low, high - cells], -1)
    inside = (cells >= 0).all(-1) & (cells[..., 0] < width) & (cells[..., 1] < height)
    return cells.long(), distances, inside & (distances > 0).all(-1)


def activate(raw: Tensor, reach: Tensor) -> Tensor:
    """Distances in (0, ``reach``) cells, float32, of raw outputs (..., 4): 4 x 2^i sigmoid^2 on level i. ``reach`` has shape (...)."""
    return raw.float().sigmoid().square() * reach.unsqueeze(-1)


def boxes_from_distances(cells: Tensor, strides: Tensor, distances: Tensor) -> Tensor:
    """Decode distances (..., 4) in cells, at cells (..., 2) with strides (...), to boxes (..., 4) xyxy in pixels."""
    corners = torch.cat([cells + 1 - distances[..., :2], cells + distances[..., 2:]], -1)
    return corners * strides.unsqueeze(-1)


def sdiou(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Scale-invariant overlap (P,) of two boxes given by distances (P, 4) from the same cell, at most 1 (ObjectBox, 3.3).

    It is (I - S) / D, where S is the squared difference of the distances, and I and D are the squared diagonals of the inner and the
    enclosing box. A negative inner side means that the boxes do not overlap. It is clamped, because its square would be positive.
    """
    apart = (predicted - wanted).square().sum(-1)
    inner = _squared_diagonal(torch.minimum(predicted, wanted))
    outer = _squared_diagonal(torch.maximum(predicted, wanted))
    return (inner - apart) / outer.clamp(min=1e-9)


def _squared_diagonal(distances: Tensor) -> Tensor:
    left, top, right, bottom = distances.unbind(-1)
    return (left + right - 1).clamp(min=0).square() + (top + bottom - 1).clamp(min=0).square()
