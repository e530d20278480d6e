"""A new loss for all six detectors: square-root frequency weights (Mahajan et al., ECCV 2018) on focal loss.

    python -m examples.new_loss

The project has this method as ``loss=sqrt_weights``; this example implements it again, as you would write a new loss.

A remedy that multiplies the loss of elements is a *weighting*, one class with ``forward``. It can be combined with all other
weightings in a chain. docs/losses.md ("A remedy of your own") says which two files make it available on the command line, and how to
write a loss of another form.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from afl.losses import ClassificationLoss, ClassificationTarget, ElementWeights, MapInfo, Weighting
from detectors import FCOS, TinyBackbone
from examples.scenes import scenes, train


class SquareRootFrequency(Weighting):
    """Positives of class c have the weight (n_max / n_c)^power, where n_c is the number of training instances of c.

    Args:
        info: description of the map: name, class counts, prior.
        power: 0.5 for the square root, 0 for plain focal loss.
    """

    weight: Tensor

    def __init__(self, info: MapInfo, *, power: float = 0.5) -> None:
        super().__init__()
        counts = info.instances_per_class.clamp(min=1)
        self.register_buffer("weight", (counts.max() / counts) ** power)

    def forward(
        self, logits: Tensor, target: ClassificationTarget, weights: ElementWeights
    ) -> ElementWeights:
        return weights.times(positive=self.weight[target.positive_class])

    def statistics(self) -> dict[str, float | Tensor]:
        """Logged for every map."""
        return {"weight_max": self.weight.max()}


def main(steps: int = 30) -> list[float]:
    """Train FCOS with it on the scenes; returns the loss of every step."""
    torch.manual_seed(0)
    images, targets, classes = scenes()
    loss = partial(ClassificationLoss, chain={"sqrt_frequency": SquareRootFrequency})
    detector = FCOS(
        backbone=TinyBackbone(),
        classes=classes,
        loss=loss,
        strides=(4, 8, 16),
        channels=32,
        tower_depth=1,
        norm="batch_per_level",
        pyramid_batch_norm=True,
    )
    values = train(detector, images, targets, steps)
    print(f"loss {values[0]:.2f} -> {values[-1]:.2f} in {steps} steps")
    print(
        "rarest class weighs",
        round(detector.classification["classification"].chain["sqrt_frequency"].weight.max().item(), 2),
    )
    return values


if __name__ == "__main__":
    main()
