"""ExtremeNet (Zhou et al., Bottom-up Object Detection by Grouping Extreme and Center Points, CVPR 2019).

Head: on one map at stride 4, C heat-map logits for each of the top, left, bottom and right points of objects and for their centres, and
a sub-cell offset (2) for each of them except the centre. Targets: a Gaussian around each point's cell, with the radius of the whole box
(detectors/heatmap.py). Losses: the classification loss on each of the five heat maps, divided by its number of peaks; smooth L1 on the
offsets at the points' cells, divided by the number of objects. Decode: edge aggregation on the four extreme maps, their best 40 peaks,
grouping around centres, Gaussian soft-NMS, ghost suppression (detectors/extreme_grouping.py).

The data provides extreme points, from masks or, as an approximation, from the sides of boxes. The detector learns the box of the
extreme points. Objects without known extreme points are not positives, and locations inside their boxes are ignored.

Differences from the official code: the Gaussian radius is corrected and has overlap 0.3 (``legacy_radius`` restores the old one); a
feature pyramid replaces the two hourglasses; crowd regions are ignored; the number of objects is not limited; the centre's target is
the cell that decoding reads, halfway between the cells of the points, and not the cell of their exact middle, which may be a neighbour;
ghosts are determined by the scores before any of them is halved; the flipped second pass is a setting of the
evaluation, ``trainer.test_time.flip``, and not a part of ``decode``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from afl.losses.target import ClassificationTarget
from detectors.contract import ClassCounts, Detections, LossFactory, Outputs, Targets
from detectors.extreme_grouping import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    X,
    Y,
    aggregate_edges,
    group_extremes,
    suppress_ghosts,
)
from detectors.fpn import FeaturePyramid
from detectors.heatmap import gather_cells, heatmap_targets, keep_peaks, offset_loss, point_cells, top_peaks
from detectors.normalizer import mean_over_ranks
from detectors.point_head import heatmap_losses, losses_of_maps, point_heads
from detectors.soft_nms import as_detections, soft_suppress

EXTREMES = ("top", "left", "bottom", "right")
MAPS = (*EXTREMES, "center")


class ExtremeNet(nn.Module):
    """Objects as four extreme points and a centre.

    Args:
        backbone: computes features by stride and lists their ``channels``.
        classes: training counts of the C classes.
        loss: creates the classification loss of each of the five maps from the map's description.
        stride: pixels per cell of the map.
        channels, head_channels, pyramid_batch_norm: size of pyramid and heads.
        shared_branches: heat map and offset of a point share their 3x3 convolution.
        min_overlap, legacy_radius: Gaussian radius, see :func:`detectors.heatmap.gaussian_radius`.
        prior: initial probability of every element of a heat map (the official bias of -2.19 gives 0.1).
        alpha: balance of peaks and negatives in the loss; -1, as in the paper, for none.
        offset_weight: weight in the sum.
        aggregation: weight of edge aggregation.
        max_points: peaks of each extreme map that are grouped.
        score_threshold: smallest score of an extreme point and of a centre.
        max_groups: number of best quadruples per image that enter soft-NMS.
        soft_nms_sigma: width of its Gaussian.
        ghost_factor: a box is a ghost if the total score of the boxes inside it exceeds its own score by more than this factor.
        max_detections: boxes kept per image.
    """

    needs_extreme_points = True

    def __init__(
        self,
        *,
        backbone: nn.Module,
        classes: ClassCounts,
        loss: LossFactory,
        stride: int = 4,
        channels: int = 256,
        head_channels: int = 256,
        pyramid_batch_norm: bool = False,
        shared_branches: bool = False,
        min_overlap: float = 0.3,
        legacy_radius: bool = False,
        prior: float = 0.1,
        alpha: float = -1.0,
        offset_weight: float = 1.0,
        aggregation: float = 0.1,
        max_points: int = 40,
        score_threshold: float = 0.1,
        max_groups: int = 1000,
        soft_nms_sigma: float = 0.5,
        ghost_factor: float = 3.0,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.num_classes, self.stride = len(classes), stride
        self.min_overlap, self.legacy_radius = min_overlap, legacy_radius
        self.aggregation, self.max_points, self.score_threshold = aggregation, max_points, score_threshold
        self.max_groups, self.soft_nms_sigma = max_groups, soft_nms_sigma
        self.ghost_factor, self.max_detections = ghost_factor, max_detections
        self.loss_weights = {name: 1.0 for name in MAPS} | {"offset": offset_weight}
        self.backbone = backbone
        self.pyramid = FeaturePyramid(
            in_channels=backbone.channels, strides=(stride,), channels=channels, batch_norm=pyramid_batch_norm
        )
        self.heads = point_heads(
            {name: {"offset": 2} if name in EXTREMES else {} for name in MAPS},
            channels=channels,
            hidden=head_channels,
            num_classes=self.num_classes,
            prior=prior,
            shared=shared_branches,
        )
        self.classification = losses_of_maps(loss, classes, MAPS, prior=prior, alpha=alpha)

    def class_layers(self) -> dict[str, list[nn.Conv2d]]:
        """The last layers of each classification map; their bias is the prior."""
        return {name: [head.heat_layer] for name, head in self.heads.items()}

    def forward(self, images: Tensor) -> Outputs:
        """Compute raw outputs of images (B, 3, H, W): the heat maps ``top``, ``left``, ``bottom``, ``right`` and ``center`` (B, C,
        h, w) of logits, and for all of them except the centre ``NAME_offset`` (B, 2, h, w), x and y in cells from the cell's upper
        left corner."""
        (x,) = self.pyramid(self.backbone(images))
        outputs: Outputs = {}
        for name in MAPS:
            found = self.heads[name](x)
            outputs[name] = found["heat"]
            if name in EXTREMES:
                outputs[f"{name}_offset"] = found["offset"]
        return outputs

    @torch.no_grad()
    def assign(
        self, outputs: Outputs, targets: Targets
    ) -> tuple[dict[str, ClassificationTarget], Tensor, Tensor]:
        """The target of each map; the cells (B, M, 4, 2) column, row of each object's extreme points; and the objects that are
        positives, (B, M) bool.

        Raises:
            ValueError: the batch has no extreme points.
        """
        if targets.extreme_points is None:
            raise ValueError(
                "ExtremeNet learns from extreme points, but this batch has none; set dataset.extreme_source to masks, or to "
                "box_sides if the data has no masks"
            )
        known = torch.isfinite(targets.extreme_points).all(-1).all(-1)
        targets = replace(targets, ignored=targets.ignored | ~known)
        points = targets.extreme_points.nan_to_num()
        height, width = outputs["center"].shape[-2:]
        cells = point_cells(points, self.stride, height, width)
        # Indexing with a tuple would copy it to the device, and the host would wait.
        center = torch.stack(
            [
                cells[..., LEFT, X] + cells[..., RIGHT, X],
                cells[..., TOP, Y] + cells[..., BOTTOM, Y],
            ],
            -1,
        )
        center = torch.div(center, 2, rounding_mode="floor")
        boxes = torch.stack(
            [points[..., LEFT, X], points[..., TOP, Y], points[..., RIGHT, X], points[..., BOTTOM, Y]], -1
        )
        maps = heatmap_targets(
            torch.stack([*cells.unbind(2), center]),
            boxes,
            targets,
            num_classes=self.num_classes,
            height=height,
            width=width,
            stride=self.stride,
            min_overlap=self.min_overlap,
            legacy_radius=self.legacy_radius,
        )
        return dict(zip(MAPS, maps, strict=True)), cells, targets.valid

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """The five heat maps by name, each divided by its number of peaks, and ``offset`` by the number of objects with
        extreme points."""
        maps, cells, learnt = self.assign(outputs, targets)
        points = targets.extreme_points.nan_to_num()
        offset = sum(
            offset_loss(outputs[f"{name}_offset"], points[..., i, :], cells[..., i, :], learnt, self.stride)
            for i, name in enumerate(EXTREMES)
        ) / mean_over_ranks(learnt.sum())
        rest = self.loss_weights["offset"] * offset.detach()
        heat = heatmap_losses(self.classification, outputs, maps, rest)
        return heat | {"offset": offset}

    @torch.no_grad()
    def decode(self, outputs: Outputs, image_sizes: Tensor) -> list[Detections]:
        """Boxes of grouped extreme points."""
        peaks, points = [], []
        for name in EXTREMES:
            along = -1 if name in ("top", "bottom") else -2
            heat = outputs[name].float().sigmoid()
            heat = aggregate_edges(heat, along, self.aggregation, self.score_threshold)
            peaks.append(top_peaks(keep_peaks(heat).clamp_(max=1), self.max_points))
            points.append(peaks[-1][2] + gather_cells(outputs[f"{name}_offset"], peaks[-1][2]))
        scores, labels, cells = (torch.stack(part, 1) for part in zip(*peaks, strict=True))
        groups = group_extremes(
            scores,
            labels,
            cells,
            outputs["center"].float().sigmoid(),
            threshold=self.score_threshold,
            limit=self.max_groups,
        )
        sides = [
            points[side][..., axis].gather(1, groups.points[..., side])
            for side, axis in ((LEFT, X), (TOP, Y), (RIGHT, X), (BOTTOM, Y))
        ]
        boxes, scores, labels = soft_suppress(
            torch.stack(sides, -1) * self.stride,
            groups.scores,
            groups.labels,
            image_sizes,
            limit=self.max_detections,
            sigma=self.soft_nms_sigma,
        )
        scores, order = suppress_ghosts(boxes, scores, labels, factor=self.ghost_factor).sort(descending=True)
        boxes = boxes.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
        return as_detections(boxes, scores, labels.gather(1, order))
