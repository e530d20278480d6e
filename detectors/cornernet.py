"""CornerNet (Law & Deng, CornerNet: Detecting Objects as Paired Keypoints, ECCV 2018).

Head: on one map at stride 4, for each of the top left and the bottom right corner, corner pooling (detectors/corner_pooling.py),
followed by C heat-map logits, a tag (1) and the sub-cell offset (2) of the corner. Targets: a Gaussian around each corner's cell
(detectors/heatmap.py); offsets and tags only at the corner's cell. Losses: the classification loss on each of the two heat maps,
divided by its number of peaks; smooth L1 on the offsets, divided by the number of objects; pull and push on the tags (equations 4 and
5), averaged over the images with objects. Decode: all pairs of the best 100 peaks of each map, of which those are kept that have the
same class, tags that differ by at most 0.5, and corners that span a box; Gaussian soft-NMS.

Differences from the official code: a feature pyramid replaces the two hourglasses, so there is no intermediate supervision; crowd
regions are ignored instead of learned as objects; the number of objects is not limited; both corners of a pair must be peaks (if a map
has fewer than 100 peaks, the official code adds other cells to the list); the flipped second pass is a setting of the
evaluation, ``trainer.test_time.flip``, and not a part of ``decode``. Pull and push are means over
images, and the official code sums them over the images of a GPU, about five. Its weight of 0.1 therefore corresponds to 0.5 here, for
every batch size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from afl.losses.target import ClassificationTarget
from detectors.contract import ClassCounts, Detections, LossFactory, Outputs, Targets
from detectors.corner_pooling import CORNERS, CornerPooling
from detectors.fpn import FeaturePyramid
from detectors.heatmap import gather_cells, heatmap_targets, keep_peaks, offset_loss, point_cells, top_peaks
from detectors.normalizer import mean_over_ranks
from detectors.point_head import heatmap_losses, losses_of_maps, point_heads
from detectors.postprocess import rows_of_images
from detectors.soft_nms import MIN_SCORE, as_detections, soft_suppress


class CornerNet(nn.Module):
    """Objects as pairs of corners.

    Args:
        backbone: computes features by stride and lists their ``channels``.
        classes: training counts of the C classes.
        loss: creates the classification loss of each corner's map from the map's description.
        stride: pixels per cell of the map.
        channels, head_channels, pyramid_batch_norm: size of pyramid and heads; ``channels`` is even.
        shared_branches: heat map, tag and offset of a corner share their 3x3 convolution.
        min_overlap, legacy_radius: Gaussian radius, see :func:`detectors.heatmap.gaussian_radius`.
        prior: initial probability of every element of a heat map (the official bias of -2.19 gives 0.1).
        alpha: balance of peaks and negatives in the loss; -1, as in the paper, for none.
        pull_weight, push_weight, offset_weight: weights in the sum.
        max_corners: peaks of each map that are paired.
        max_tag_distance: largest difference between the tags of one object's corners.
        max_pairs: number of best pairs per image that enter soft-NMS.
        soft_nms_sigma: width of its Gaussian.
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
        head_channels: int = 256,
        pyramid_batch_norm: bool = False,
        shared_branches: bool = False,
        min_overlap: float = 0.3,
        legacy_radius: bool = False,
        prior: float = 0.1,
        alpha: float = -1.0,
        pull_weight: float = 0.5,
        push_weight: float = 0.5,
        offset_weight: float = 1.0,
        max_corners: int = 100,
        max_tag_distance: float = 0.5,
        max_pairs: int = 1000,
        soft_nms_sigma: float = 0.5,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.num_classes, self.stride = len(classes), stride
        self.min_overlap, self.legacy_radius = min_overlap, legacy_radius
        self.max_corners, self.max_tag_distance, self.max_pairs = max_corners, max_tag_distance, max_pairs
        self.soft_nms_sigma, self.max_detections = soft_nms_sigma, max_detections
        self.loss_weights = {
            "top_left": 1.0,
            "bottom_right": 1.0,
            "pull": pull_weight,
            "push": push_weight,
            "offset": offset_weight,
        }
        self.backbone = backbone
        self.pyramid = FeaturePyramid(
            in_channels=backbone.channels, strides=(stride,), channels=channels, batch_norm=pyramid_batch_norm
        )
        self.pooling = nn.ModuleDict(
            {corner: CornerPooling(channels=channels, corner=corner) for corner in CORNERS}
        )
        self.heads = point_heads(
            {corner: {"tag": 1, "offset": 2} for corner in CORNERS},
            channels=channels,
            hidden=head_channels,
            num_classes=self.num_classes,
            prior=prior,
            shared=shared_branches,
        )
        self.classification = losses_of_maps(loss, classes, CORNERS, prior=prior, alpha=alpha)

    def class_layers(self) -> dict[str, list[nn.Conv2d]]:
        """The last layers of each classification map; their bias is the prior."""
        return {name: [head.heat_layer] for name, head in self.heads.items()}

    def forward(self, images: Tensor) -> Outputs:
        """Compute raw outputs of images (B, 3, H, W). For NAME ``top_left`` and ``bottom_right``: ``NAME``, the heat map's logits
        (B, C, h, w); ``NAME_tag`` (B, 1, h, w); ``NAME_offset`` (B, 2, h, w), x and y in cells from the cell's upper left corner."""
        (x,) = self.pyramid(self.backbone(images))
        outputs: Outputs = {}
        for corner in CORNERS:
            found = self.heads[corner](self.pooling[corner](x))
            outputs[corner] = found["heat"]
            outputs[f"{corner}_tag"], outputs[f"{corner}_offset"] = found["tag"], found["offset"]
        return outputs

    @torch.no_grad()
    def assign(
        self, outputs: Outputs, targets: Targets
    ) -> tuple[dict[str, ClassificationTarget], dict[str, Tensor]]:
        """For each corner its map's target, and the cell (B, M, 2) column, row of each object's corner."""
        height, width = outputs["top_left"].shape[-2:]
        points = torch.stack([corner_points(targets.boxes, corner) for corner in CORNERS])
        cells = point_cells(points, self.stride, height, width)
        maps = heatmap_targets(
            cells,
            targets.boxes,
            targets,
            num_classes=self.num_classes,
            height=height,
            width=width,
            stride=self.stride,
            min_overlap=self.min_overlap,
            legacy_radius=self.legacy_radius,
        )
        return dict(zip(CORNERS, maps, strict=True)), dict(zip(CORNERS, cells, strict=True))

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """``top_left`` and ``bottom_right`` divided by their numbers of peaks, ``offset`` by the number of objects,
        ``pull`` and ``push`` by the number of images with objects."""
        maps, cells = self.assign(outputs, targets)
        valid = targets.valid
        offset = sum(
            offset_loss(
                outputs[f"{corner}_offset"],
                corner_points(targets.boxes, corner),
                cells[corner],
                valid,
                self.stride,
            )
            for corner in CORNERS
        ) / mean_over_ranks(valid.sum())
        tags = [gather_cells(outputs[f"{corner}_tag"], cells[corner]).squeeze(-1) for corner in CORNERS]
        pull, push = pull_and_push(*tags, valid)
        images = mean_over_ranks(valid.any(1).sum())
        terms = {"pull": pull.sum() / images, "push": push.sum() / images, "offset": offset}
        rest = sum(self.loss_weights[name] * value.detach() for name, value in terms.items())
        heat = heatmap_losses(self.classification, outputs, maps, rest)
        return heat | terms

    @torch.no_grad()
    def decode(self, outputs: Outputs, image_sizes: Tensor) -> list[Detections]:
        """Boxes spanned by corners that belong together."""
        scores, labels, tags, points = {}, {}, {}, {}
        for corner in CORNERS:
            heat = keep_peaks(outputs[corner].float().sigmoid())
            scores[corner], labels[corner], cells = top_peaks(heat, self.max_corners)
            tags[corner] = gather_cells(outputs[f"{corner}_tag"], cells).squeeze(-1)
            points[corner] = cells + gather_cells(outputs[f"{corner}_offset"], cells)
        first, second = CORNERS
        # Pairs (B, K, K): a top left corner in a row, a bottom right one in a column.
        left, right = points[first].unsqueeze(2), points[second].unsqueeze(1)
        belong = (
            (labels[first].unsqueeze(2) == labels[second].unsqueeze(1))
            & ((tags[first].unsqueeze(2) - tags[second].unsqueeze(1)).abs() <= self.max_tag_distance)
            & (left < right).all(-1)
            & (scores[first] > 0).unsqueeze(2)
            & (scores[second] > 0).unsqueeze(1)
        )
        pair_scores = (scores[first].unsqueeze(2) + scores[second].unsqueeze(1)) / 2 * belong
        # The host waits once for the number of usable pairs, so that soft-NMS processes only a few columns.
        most = min(self.max_pairs, int((pair_scores >= MIN_SCORE).flatten(1).sum(1).max()))
        best, index = pair_scores.flatten(1).topk(most)
        row = torch.div(index, right.shape[2], rounding_mode="floor")
        column = index % right.shape[2]
        corners = [rows_of_images(points[first], row), rows_of_images(points[second], column)]
        boxes = torch.cat(corners, -1) * self.stride
        found = soft_suppress(
            boxes,
            best,
            labels[first].gather(1, row),
            image_sizes,
            limit=self.max_detections,
            sigma=self.soft_nms_sigma,
        )
        return as_detections(*found)


def corner_points(boxes: Tensor, corner: str) -> Tensor:
    """The x, y (..., 2) of one of ``CORNERS`` of boxes (..., 4) xyxy."""
    return boxes[..., :2] if corner == "top_left" else boxes[..., 2:]


def pull_and_push(first: Tensor, second: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Losses that pull the two tags of an object together and push tags of different objects apart (CornerNet, 3.2).

    With e the mean tag of an object and N objects in an image: pull is the mean over objects of the two squared
    distances to e (equation 4), push the mean over ordered pairs of objects of max(0, 1 - |e_i - e_j|) (equation 5).

    Args:
        first, second: (B, M) tags at the corners; valid: (B, M) bool.

    Returns:
        pull (B,) and push (B,); 0 without objects, push 0 with one.
    """
    count = valid.sum(1)
    mean = (first + second) / 2
    spread = (first - mean) ** 2 + (second - mean) ** 2
    pull = torch.where(valid, spread, 0.0).sum(1) / count.clamp(min=1)
    near = (1 - (mean.unsqueeze(2) - mean.unsqueeze(1)).abs()).clamp(min=0)
    pairs = valid.unsqueeze(2) & valid.unsqueeze(1)
    pairs = pairs & ~torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    push = torch.where(pairs, near, 0.0).sum((1, 2)) / (count * (count - 1)).clamp(min=1)
    return pull, push
