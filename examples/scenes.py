"""A batch of the scenes that come with the repository, and a plain training loop, for the other examples."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from afl.training.inputs import normalise, targets_of
from datasets import ClassStatistics, DetectionDataset, PadOnly, collate, read_coco
from detectors.contract import ClassCounts, Targets, weighted_sum

SCENES = Path(__file__).resolve().parents[1] / "zoo" / "images" / "shapes_lvis"


def scenes(images: int = 12) -> tuple[Tensor, Targets, ClassCounts]:
    """Normalised images (B, 3, 96, 96), their targets, and the counts of each class."""
    index = read_coco(SCENES / "annotations.json", SCENES)
    samples = DetectionDataset(index, PadOnly())
    batch = collate([samples[0, i] for i in range(images)])
    statistics = ClassStatistics.from_index(index)
    counts = ClassCounts(
        torch.as_tensor(statistics.instances).float(), torch.as_tensor(statistics.images).float()
    )
    return normalise(batch.images, channels_last=False), targets_of(batch), counts


def train(
    detector: nn.Module, images: Tensor, targets: Targets, steps: int, rate: float = 5e-3
) -> list[float]:
    """Train on one batch; returns the loss of every step. A detector needs nothing else from a training loop."""
    optimizer = torch.optim.AdamW(detector.parameters(), lr=rate)
    detector.train()
    values = []
    for _ in range(steps):
        total = weighted_sum(detector.losses(detector(images), targets), detector.loss_weights)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        for loss in detector.classification.values():
            loss.update()  # running state, such as AFL's kappa
        values.append(total.item())
    return values
