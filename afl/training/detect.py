"""Detects objects in the images of a data set; boxes are in pixels of the original images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afl.training.inputs import normalise
from afl.training.precision import network_precision
from datasets import Batch, boxes_in_file
from detectors.boxes import clip_boxes
from detectors.contract import Detections
from detectors.postprocess import per_class_nms

DIVISOR = 32  # sides of network inputs


@dataclass(frozen=True)
class TestTime:
    """Test-time augmentation for every detector: several views of an image, whose boxes are merged by NMS.

    Attributes:
        flip: add a mirrored copy of every view.
        scales: sizes of the views relative to the network input.
        nms_iou: of two boxes of one class with a larger overlap, only the one with the higher score is kept.
    """

    __test__ = False  # pytest would collect it as a test class

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    nms_iou: float = 0.6

    def __post_init__(self) -> None:
        if not self.scales or any(scale <= 0 for scale in self.scales):
            raise ValueError(f"trainer.test_time.scales is {list(self.scales)}; every scale must be positive")

    @property
    def views(self) -> list[tuple[float, bool]]:
        """(scale, mirrored) of each view."""
        return [
            (scale, mirrored)
            for scale in self.scales
            for mirrored in ((False, True) if self.flip else (False,))
        ]


def to_original(detections: Detections, matrix: Tensor, size: Tensor) -> Detections:
    """Map boxes from pixels of the network input to pixels of the image file; the result is on the CPU.

    Args:
        matrix: (2, 3) affine map from pixels of the file to pixels of the network input.
        size: (2,) height and width of the image in the file.
    """
    boxes = boxes_in_file(detections.boxes.cpu(), matrix, size)
    return Detections(boxes=boxes, scores=detections.scores.cpu(), labels=detections.labels.cpu())


def detect_view(
    detector: nn.Module,
    images: Tensor,
    sizes: Tensor,
    *,
    scale: float,
    mirrored: bool,
    autocast: torch.dtype | None,
) -> list[Detections]:
    """Detections in one view, with boxes in pixels of the unchanged ``images``.

    Args:
        images: (B, 3, H, W), padded on the right and at the bottom.
        sizes: (B, 2) height and width of each image without padding.
        scale: size of the view relative to ``images``.
        mirrored: whether the view is mirrored horizontally.
        autocast: dtype of the network's arithmetic, None for float32.
    """
    height, width = images.shape[-2:]
    stretch = torch.ones(2, device=sizes.device)
    if scale != 1.0:
        new = [max(1, round(side * scale)) for side in (height, width)]
        stretch = torch.tensor([new[0] / height, new[1] / width], device=sizes.device)
        images = F.interpolate(images, size=new, mode="bilinear", antialias=True, align_corners=False)
        images = F.pad(images, (0, -new[1] % DIVISOR, 0, -new[0] % DIVISOR))
    images = images.flip(-1) if mirrored else images
    new_height, new_width = images.shape[-2:]
    own = sizes * stretch
    # In a mirrored batch the padding is on the left, so the content extends to the right border.
    content = torch.tensor([new_height, new_width], device=sizes.device).expand_as(sizes) if mirrored else own
    with network_precision(images.device.type, autocast):
        outputs = detector(images)
    found = []
    for one, size in zip(detector.decode(outputs, content), own, strict=True):
        boxes = one.boxes
        if mirrored:
            boxes = torch.stack(
                [new_width - boxes[:, 2], boxes[:, 1], new_width - boxes[:, 0], boxes[:, 3]], 1
            )
            boxes = clip_boxes(boxes, size.to(boxes.device))
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes = boxes / stretch.to(boxes.device).flip(0).repeat(2)
        found.append(Detections(boxes[inside], one.scores[inside], one.labels[inside]))
    return found


def merge(views: list[Detections], nms_iou: float, limit: int) -> Detections:
    """Merge the detections of several views of one image by per-class NMS, and keep the best ``limit``."""
    boxes, scores, labels = (
        torch.cat([getattr(view, name) for view in views]) for name in ("boxes", "scores", "labels")
    )
    keep = per_class_nms(boxes, scores, labels, nms_iou)[:limit]
    return Detections(boxes[keep], scores[keep], labels[keep])


@torch.no_grad()
def detect(
    detector: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    autocast: torch.dtype | None,
    channels_last: bool,
    test_time: TestTime,
) -> Iterator[tuple[Batch, list[Detections]]]:
    """Yield each batch with the detections of its images, in original pixels on the CPU."""
    detector.eval()
    for batch in batches:
        images = normalise(batch.images.to(device, non_blocking=True), channels_last)
        views = [
            detect_view(detector, images, batch.sizes, scale=scale, mirrored=mirrored, autocast=autocast)
            for scale, mirrored in test_time.views
        ]
        found = views[0]
        if len(views) > 1:
            found = [
                merge(list(of_one), test_time.nms_iou, detector.max_detections)
                for of_one in zip(*views, strict=True)
            ]
        yield (
            batch,
            [
                to_original(detections, matrix.cpu(), size.cpu())
                for detections, matrix, size in zip(found, batch.matrices, batch.original_sizes, strict=True)
            ],
        )
