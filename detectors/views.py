"""Score maps of a detector's raw outputs, for display."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detectors.contract import Outputs

# Score outputs of the pyramid detectors: logits for each location, with or without classes.
LEVEL_SCORES = {
    "logits": "class",
    "classes": "class",
    "objectness": "objectness",
    "centerness": "centre-ness",
}


def score_maps(detector: nn.Module, outputs: Outputs, height: int, width: int) -> dict[str, Tensor]:
    """Score maps of the first image of a batch: the score of the best class (and anchor) at every location.

    Args:
        outputs: result of ``detector(images)`` for images of ``height`` x ``width`` pixels.

    Returns:
        Probabilities (h, w) in [0, 1] by name, on the CPU; heads on a pyramid have one map for each score and level.
    """
    heat_maps = [name for name in detector.classification if name in outputs and outputs[name].ndim == 4]
    if heat_maps:
        return {name: outputs[name][0].float().sigmoid().amax(0).cpu() for name in heat_maps}
    maps = {}
    for key, name in LEVEL_SCORES.items():
        if key not in outputs:
            continue
        scores = outputs[key][0].float().sigmoid()
        scores = scores.amax(-1) if scores.ndim == 2 else scores
        shapes = [(-(-height // stride), -(-width // stride)) for stride in detector.strides]
        cells = torch.tensor([h * w for h, w in shapes])
        per_cell = len(scores) // int(cells.sum())
        levels = scores.split((cells * per_cell).tolist())
        for level, (h, w), stride in zip(levels, shapes, detector.strides, strict=True):
            maps[f"{name}, stride {stride}"] = level.view(h, w, per_cell).amax(-1).cpu()
    return maps


def over_content(scores: Tensor, size: tuple[int, int], padded: tuple[int, int]) -> Tensor:
    """The part of a map (h, w) over the image, without the part over its padding.

    Args:
        size: height and width of the image inside the network input; ``padded``: height and width of the input.
    """
    rows = max(1, round(scores.shape[0] * size[0] / padded[0]))
    columns = max(1, round(scores.shape[1] * size[1] / padded[1]))
    return scores[:rows, :columns]
