"""Losses that are undefined on some detectors give one line with the map and the reason."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from afl.config import CONF
from afl.losses import UndefinedPair
from afl.tracking import read_record
from afl.training.build import build_detector
from afl.training.compose import compose_cell
from detectors.contract import ClassCounts, Targets

CLASSES, SIZE = 5, 64
# Corners and extreme points have no boxes.
UNDEFINED = {
    (detector, loss): "predicts no box there"
    for detector in ("cornernet", "extremenet")
    for loss in ("pisa", "qfl", "vfl")
}
DEFINED = [
    *((detector, "pisa") for detector in ("centernet", "retinanet", "fcos", "objectbox")),
    *((detector, "seesaw") for detector in ("cornernet", "extremenet", "objectbox")),
]


def losses(detector: str, loss: str, *overrides: str) -> list[torch.Tensor]:
    config = compose_cell(detector=detector, loss=loss, overrides=["dataset=shapes_coco", *overrides])
    model = build_detector(config, ClassCounts(torch.full((CLASSES,), 9.0), torch.full((CLASSES,), 9.0)))
    boxes = torch.tensor([[[4.0, 4.0, 30.0, 40.0], [20.0, 24.0, 60.0, 52.0]]])
    x, y = boxes[..., 0::2], boxes[..., 1::2]
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    top, bottom = (torch.stack([middle[..., 0], y[..., i]], -1) for i in (0, 1))
    left, right = (torch.stack([x[..., i], middle[..., 1]], -1) for i in (0, 1))
    targets = Targets(
        boxes=boxes,
        labels=torch.tensor([[0, 3]]),
        ignored=torch.zeros(1, 2, dtype=torch.bool),
        image_sizes=torch.full((1, 2), SIZE),
        extreme_points=torch.stack([top, left, bottom, right], 2),
        verified=torch.ones(1, CLASSES, dtype=torch.bool),
    )
    return list(model.losses(model(torch.zeros(1, 3, SIZE, SIZE)), targets).values())


@pytest.mark.parametrize(("detector", "loss"), UNDEFINED)
def test_an_undefined_pair_gives_one_line_with_loss_map_and_reason(detector, loss):
    with pytest.raises(UndefinedPair) as refused:
        losses(detector, loss)
    text = str(refused.value)
    assert (
        text.startswith(loss) and "map '" in text and UNDEFINED[detector, loss] in text and "\n" not in text
    )


@pytest.mark.parametrize(("detector", "loss"), DEFINED)
def test_the_same_losses_are_defined_on_the_other_detectors(detector, loss):
    assert all(value.isfinite() for value in losses(detector, loss))


def test_a_sweep_continues_after_an_undefined_pair_without_a_traceback(tmp_path):
    small = ("dataset.folder.num_train=24", "dataset.folder.num_val=10", "trainer.max_duration=1steps", "initial_weights=null",
             "trainer.progress=none", "trainer.batch_size=4", "trainer.pictures=0", "logger=none")  # fmt: skip
    command = [
        sys.executable, "-m", "scripts.train", "-m", "detector=cornernet", "loss=qfl,fl", "dataset=shapes_coco", *small,
        f"paths.output={tmp_path / 'outputs'}", f"paths.cache={tmp_path / 'cache'}",
    ]  # fmt: skip
    found = subprocess.run(command, cwd=CONF.parent, capture_output=True, text=True)
    assert found.returncode == 1 and "Traceback" not in found.stderr, found.stderr
    assert len([line for line in found.stdout.splitlines() if "failed: qfl needs the IoU" in line]) == 1
    records = [read_record(path) for path in (tmp_path / "outputs").glob("*/record.json")]
    assert sorted((record.loss, record.status) for record in records) == [
        ("fl", "finished"),
        ("qfl", "failed"),
    ]
