"""Ground truth of real and generated sets as targets, and the official AP of the decoded detections."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from afl.evaluation import CocoEvaluator
from datasets import AnnotationIndex, generate_shapes, read_coco, read_shapes, read_voc
from detectors.contract import Detections, Targets

# Short side, limit of the long side, and strides, for the benchmark's size and for the published size.
SMALL, LARGE = (96, 96, (4, 8, 16)), (800, 1333, (8, 16, 32, 64, 128))


class BlankBackbone(nn.Module):
    """Returns zero features at the given strides, for tests of targets and decoding without a network."""

    def __init__(self, *strides: int) -> None:
        super().__init__()
        self.channels = dict.fromkeys(strides, 1)

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        height, width = images.shape[-2:]
        return {s: images.new_zeros(len(images), 1, height // s, width // s) for s in self.channels}


@dataclass(frozen=True)
class Image:
    """Targets of one resized image, its padded height and width, and its resize factor."""

    targets: Targets
    height: int
    width: int
    scale: float

    @property
    def pixels(self) -> Tensor:
        """(1, 3, H, W) black."""
        return torch.zeros(1, 3, self.height, self.width)


@dataclass(frozen=True)
class GroundTruth:
    """A data set, its images with objects, and the strides of detectors for them."""

    index: AnnotationIndex
    images: dict[int, Image]
    strides: tuple[int, ...]

    def average_precision(self, found: dict[int, Detections], left_out: dict[int, Tensor]) -> float:
        """pycocotools' AP over 0.5:0.95 of detections by image number.

        ``left_out`` (1, M) bool are objects that the evaluation ignores.
        """
        truth = self.index.coco_dict()
        for number, missing in left_out.items():
            first = self.index.annotations(number).start
            for a in missing.flatten().nonzero().flatten().tolist():
                truth["annotations"][first + a]["iscrowd"] = 1
        evaluator = CocoEvaluator(truth, max_detections=300)
        for number, detections in found.items():
            scaled = Detections(
                boxes=detections.boxes / self.images[number].scale,
                scores=detections.scores,
                labels=detections.labels,
            )
            evaluator.process([self.index.image_ids[number]], [scaled])
        return evaluator.evaluate()["AP"]


def ground_truth(name: str, shared_data: Path, generated: Path) -> GroundTruth:
    """``shapes``, ``coco_sample`` or ``bccd``."""
    if name == "shapes":
        folder = generate_shapes(generated, num_train=20, num_val=40)
        index, (short, limit, strides) = read_shapes(folder, split="val", annotation_format="coco"), SMALL
    elif name == "coco_sample":
        annotations = next((shared_data / name / "annotations").glob("*val2017.json"))
        index, (short, limit, strides) = read_coco(annotations, shared_data / name / "val2017"), LARGE
    else:
        index = read_voc(shared_data / name, ["val"], policy="skip").select(range(40))
        short, limit, strides = LARGE
    images = {}
    for i in range(len(index)):
        chosen = index.annotations(i)
        if chosen.stop > chosen.start:
            height, width = int(index.heights[i]), int(index.widths[i])
            scale = min(short / min(height, width), limit / max(height, width))
            size = [round(height * scale), round(width * scale)]
            targets = Targets(
                boxes=torch.from_numpy(index.boxes[chosen].astype(np.float32) * np.float32(scale)).unsqueeze(
                    0
                ),
                labels=torch.from_numpy(index.labels[chosen].astype(np.int64)).unsqueeze(0),
                ignored=torch.from_numpy(index.crowd[chosen]).unsqueeze(0),
                image_sizes=torch.tensor([size]),
            )
            images[i] = Image(targets, *(-(-side // 32) * 32 for side in size), scale)
    return GroundTruth(index, images, strides)
