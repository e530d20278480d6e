"""CenterNet (Zhou et al., Objects as Points, 2019).

Head: one map at stride 4 with C heat-map logits, and the size (2) and the sub-cell offset (2) of the object centred in a cell.
Targets: a Gaussian around each centre (detectors/heatmap.py); size and offset only at the centre cell. Losses: the classification
loss on the heat map, divided by the number of peaks; L1 on offset and size, each divided by twice the number of objects (two
coordinates). Decode: local maxima of 3 x 3 cells, the best 100, no NMS.

Differences from the official code: the Gaussian radius is corrected and has overlap 0.3 (``legacy_radius`` restores the old one);
plain convolutions on a feature pyramid replace deformable ones; crowd regions are ignored instead of learned as objects; the number
of objects is not limited. ``size_loss="giou"`` replaces the L1 loss on sizes. It gives small and large objects equal weight, which
helps a short training on small images.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from afl.losses.target import PADDING, ClassificationTarget
from detectors.boxes import aligned_giou, aligned_iou, clip_boxes, masked_sum
from detectors.contract import ClassCounts, Detections, LossFactory, Outputs, Targets
from detectors.fpn import FeaturePyramid
from detectors.heads import as_map, map_head
from detectors.heatmap import gather_cells, heatmap_targets, keep_peaks, owners, point_cells, top_peaks
from detectors.normalizer import mean_over_ranks
from detectors.postprocess import on_cpu

SIZE_LOSSES = ("l1", "giou")


class CenterNet(nn.Module):
    """Objects as centre points.

    Args:
        backbone: computes features by stride and lists their ``channels``.
        classes: training counts of the C classes.
        loss: creates the classification loss from the map's description.
        stride: pixels per cell of the map.
        channels, head_channels, pyramid_batch_norm: size of pyramid and heads.
        min_overlap, legacy_radius: Gaussian radius, see :func:`detectors.heatmap.gaussian_radius`.
        prior: initial probability of every element of the heat map (the official bias of -2.19 gives 0.1).
        alpha: balance of peaks and negatives in the loss; -1, as in the paper, for none.
        size_loss: ``"l1"`` (paper) or ``"giou"``.
        size_weight, offset_weight: weights in the sum; the paper's are 0.1 and 1.
        max_detections: boxes kept per image.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        classes: ClassCounts,
        loss: LossFactory,
        stride: int = 4,
        channels: int = 256,
        head_channels: int = 64,
        pyramid_batch_norm: bool = False,
        min_overlap: float = 0.3,
        legacy_radius: bool = False,
        prior: float = 0.1,
        alpha: float = -1.0,
        size_loss: str = "l1",
        size_weight: float = 0.1,
        offset_weight: float = 1.0,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        if size_loss not in SIZE_LOSSES:
            raise ValueError(f"size_loss is {size_loss!r}; known are {', '.join(SIZE_LOSSES)}")
        self.num_classes, self.stride = len(classes), stride
        self.min_overlap, self.legacy_radius = min_overlap, legacy_radius
        self.size_loss, self.max_detections = size_loss, max_detections
        self.loss_weights = {"heat": 1.0, "size": size_weight, "offset": offset_weight}
        self.backbone = backbone
        self.pyramid = FeaturePyramid(
            in_channels=backbone.channels, strides=(stride,), channels=channels, batch_norm=pyramid_batch_norm
        )
        self.heat = map_head(channels, head_channels, self.num_classes, prior=prior)
        self.size = map_head(channels, head_channels, 2)
        self.offset = map_head(channels, head_channels, 2)
        info = classes.map_info("heat", prior=prior, alpha=alpha, dense_positives=False)
        self.classification = nn.ModuleDict({"heat": loss(info)})

    def class_layers(self) -> dict[str, list[nn.Conv2d]]:
        """The last layers of each classification map; their bias is the prior."""
        return {"heat": [self.heat[-1]]}

    def forward(self, images: Tensor) -> Outputs:
        """Compute raw outputs of images (B, 3, H, W): ``heat`` (B, C, h, w) logits, ``size`` (B, 2, h, w) width and height in
        cells, ``offset`` (B, 2, h, w) x and y in cells from the cell's upper left corner."""
        (x,) = self.pyramid(self.backbone(images))
        return {"heat": self.heat(x), "size": self.size(x), "offset": self.offset(x)}

    @torch.no_grad()
    def assign(self, outputs: Outputs, targets: Targets) -> tuple[ClassificationTarget, Tensor]:
        """The heat map's target, and the centre cell (B, M, 2) column, row of each object."""
        height, width = outputs["heat"].shape[-2:]
        centre = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
        cells = point_cells(centre, self.stride, height, width)
        (target,) = heatmap_targets(
            cells.unsqueeze(0),
            targets.boxes,
            targets,
            num_classes=self.num_classes,
            height=height,
            width=width,
            stride=self.stride,
            min_overlap=self.min_overlap,
            legacy_radius=self.legacy_radius,
        )
        if self.classification["heat"].uses_overlap:
            owner = owners(target, cells, targets.labels, targets.valid, width, height * width)
            found = aligned_iou(
                self._boxes(outputs, cells).flatten(0, 1)[owner], targets.boxes.flatten(0, 1)[owner]
            )
            target = replace(target, overlap=found, object=torch.where(target.is_positive, owner, PADDING))
        return target, cells

    def _boxes(self, outputs: Outputs, cells: Tensor) -> Tensor:
        """The boxes (B, K, 4) predicted at cells (B, K, 2), in pixels."""
        centre = cells + gather_cells(outputs["offset"], cells)
        half = gather_cells(outputs["size"], cells).clamp(min=0) / 2
        return torch.cat([centre - half, centre + half], -1) * self.stride

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """``heat`` divided by the number of peaks, ``size`` and ``offset`` by (twice) the number of objects."""
        target, cells = self.assign(outputs, targets)
        valid = targets.valid
        objects = mean_over_ranks(valid.sum())
        size = gather_cells(outputs["size"], cells)
        offset = gather_cells(outputs["offset"], cells)
        centre = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2 / self.stride
        wanted = (targets.boxes[..., 2:] - targets.boxes[..., :2]) / self.stride
        offset_loss = masked_sum((offset - (centre - cells)).abs(), valid.unsqueeze(-1)) / (2 * objects)
        if self.size_loss == "l1":
            size_loss = masked_sum((size - wanted).abs(), valid.unsqueeze(-1)) / (2 * objects)
        else:
            # Both boxes have the true centre, so only their sizes differ. A negative size gives no box, so an L1 term
            # makes it positive again.
            solid = size.clamp(min=1e-3)
            giou = aligned_giou(torch.cat([-solid, solid], -1), torch.cat([-wanted, wanted], -1))
            below = (solid - size).abs().sum(-1)
            size_loss = masked_sum(1 - giou + below, valid) / objects
        heat = self.classification["heat"](
            as_map(outputs["heat"], self.num_classes).flatten(0, 1),
            target,
            mean_over_ranks(target.num_positives()),
            localization=(
                self.loss_weights["size"] * size_loss + self.loss_weights["offset"] * offset_loss
            ).detach(),
        )
        return {"heat": heat, "size": size_loss, "offset": offset_loss}

    @torch.no_grad()
    def decode(self, outputs: Outputs, image_sizes: Tensor) -> list[Detections]:
        """Boxes around the best peaks of each image."""
        scores, labels, cells = top_peaks(keep_peaks(outputs["heat"].float().sigmoid()), self.max_detections)
        boxes, scores, labels = on_cpu(self._boxes(outputs, cells), scores, labels)
        boxes = clip_boxes(boxes, image_sizes.cpu().unsqueeze(1))
        # Cells with a score of 0 are not peaks. They fill the list if a map has fewer peaks.
        solid = (boxes[..., 2:] > boxes[..., :2]).all(-1) & (scores > 0)
        return [
            Detections(boxes=b[kept], scores=s[kept], labels=c[kept])
            for b, s, c, kept in zip(boxes, scores, labels, solid, strict=True)
        ]
