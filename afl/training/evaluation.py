"""Running a detector over a data set, back to the pixels of the original images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from afl.training.loop import Batch, normalise
from datasets import boxes_in_file
from detectors.contract import Detections


def to_original(detections: Detections, matrix: Tensor, size: Tensor) -> Detections:
    """From network-input pixels to those of the image's file, on the CPU.

    Args:
        matrix: (2, 3) affine map from file to network-input pixels; size: (2,) height and width of the file's image.
    """
    boxes = boxes_in_file(detections.boxes.cpu(), matrix, size)
    return Detections(boxes=boxes, scores=detections.scores.cpu(), labels=detections.labels.cpu())


@torch.no_grad()
def detect(
    detector: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    autocast: torch.dtype | None,
    channels_last: bool,
) -> Iterator[tuple[Batch, list[Detections]]]:
    """Yield each batch with the detections of its images, in original pixels on the CPU."""
    detector.eval()
    for batch in batches:
        images = normalise(batch.images.to(device, non_blocking=True), channels_last)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            outputs = detector(images)
        found = detector.decode(outputs, batch.sizes.to(device))
        yield (
            batch,
            [
                to_original(detections, matrix.cpu(), size.cpu())
                for detections, matrix, size in zip(found, batch.matrices, batch.original_sizes, strict=True)
            ],
        )
