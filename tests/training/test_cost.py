"""Multiply-adds compared with manual and published counts, checkpoint sizes with a file, protocols with the transforms."""

from __future__ import annotations

import os

import pytest
import torch

from afl.training import run_cell
from afl.training.build import build_detector, loop_options
from afl.training.checkpoint import LAST
from afl.training.compose import compose_cell
from afl.training.cost import (
    measure_throughput,
    network_cost,
    random_batches,
    skeleton,
    training_size,
    without_download,
)
from afl.training.protocol import protocol
from detectors.contract import ClassCounts


def test_multiply_adds_equal_a_manual_count_over_convolutions(small_cell):
    config = small_cell("retinanet")
    counts = ClassCounts(torch.full((30,), 100.0), torch.full((30,), 100.0))
    detector = build_detector(config, counts).eval()
    total = 0

    def count(module, inputs, output):
        nonlocal total
        total += output[0].numel() * module.weight[0].numel()

    for module in detector.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    detector(torch.zeros(1, 3, *training_size(config)))
    assert network_cost(config, 30).forward_macs == total > 0


def test_multiply_adds_of_retinanet_equal_the_figure_of_detectron2():
    # 146 billion at 800 x 800 with ResNet-50 and 80 classes, the figure of detectron2's unit test.
    config = compose_cell(detector="retinanet", loss="fl", overrides=["experiment=coco/retinanet"])
    height, width = training_size(config)
    assert (height, width) == (800, 1088)
    assert network_cost(config, 80).forward_macs * 800 * 800 / (height * width) == pytest.approx(
        146e9, rel=0.03
    )


@pytest.mark.parametrize("detector", ["fcos", "centernet"])
def test_folded_norms_have_no_multiply_adds(detector):
    both = [
        network_cost(
            compose_cell(
                detector=detector,
                loss="fl",
                overrides=["dataset=foda", "dataset.root=unused", f"backbone.frozen_batch_norm={folded}"],
            ),
            31,
        )
        for folded in ("true", "false")
    ]
    assert both[0].forward_macs == both[1].forward_macs > 10**7


@pytest.mark.parametrize("detector, optimizer", [("centernet", "adamw"), ("fcos", "sgd")])
def test_a_checkpoint_has_the_estimated_size(small_cell, detector, optimizer):
    options = ("trainer.max_duration=1steps", "trainer.ema=0.9", f"optimizer={optimizer}")
    config = small_cell(detector, "fl", *options)
    record = run_cell(config)
    found = os.path.getsize(f"{config.paths.output}/{record.key}/checkpoints/{LAST}")
    assert network_cost(config, 30).checkpoint_bytes == pytest.approx(found, rel=0.15)


def test_speed_is_measured_at_the_size_and_batch_of_the_run(small_cell):
    config = small_cell("extremenet", "afl")
    before = config.copy()
    found = measure_throughput(config, 30, steps=1)
    assert found.images_per_second > 0 and (found.batch_size, found.size) == (4, (96, 96))
    assert config == before


def test_random_batches_have_the_form_of_training_batches(small_cell):
    batch = next(random_batches(small_cell("extremenet"), 30))
    assert batch.images.shape == (4, 3, 96, 96)
    assert bool((batch.boxes[..., 2:] > batch.boxes[..., :2]).all())
    assert bool((batch.boxes >= 0).all() & (batch.boxes <= 96).all())
    # Each extreme point is on its side of the box: top, left, bottom, right.
    for point, (axis, side) in enumerate([(1, 1), (0, 0), (1, 3), (0, 2)]):
        assert torch.equal(batch.extreme_points[:, :, point, axis], batch.boxes[..., side])


def test_nothing_is_downloaded_and_the_network_is_the_same():
    config = compose_cell(detector="centernet", loss="afl", overrides=["dataset=coco", "backbone=resnet18"])
    assert config.backbone.pretrained and not without_download(config).backbone.pretrained
    assert config.backbone.pretrained
    weights = skeleton(config, 80)
    assert {p.device.type for p in weights.parameters()} == {"meta"}


@pytest.mark.parametrize(
    "detector, overrides, size",
    [
        ("fcos", ["dataset=coco"], "800, at most 1333"),
        ("centernet", ["dataset=coco"], "512"),
        ("objectbox", ["experiment=coco/objectbox"], "640"),
        ("fcos", ["dataset=shapes"], "96"),
    ],
)
def test_the_protocol_names_the_evaluated_size(detector, overrides, size):
    config = compose_cell(detector=detector, loss="fl", overrides=overrides)
    options = loop_options(config, num_images=100, world_size=1)
    assert protocol(config, options)["image size"] == size


@pytest.mark.parametrize(
    "overrides, start",
    [
        (["dataset=coco"], "resnet50, ImageNet weights"),
        (["dataset=shapes"], "tiny, pre-trained on generated images of other classes"),
        (
            ["dataset=shapes", "backbone=resnet18"],
            "resnet18, ImageNet weights, then pre-trained on generated images of other classes",
        ),
        (["dataset=coco", "initial_weights=my.pt"], "resnet50, my.pt"),
        (["dataset=shapes", "initial_weights=null"], "tiny, random weights"),
    ],
)
def test_the_protocol_names_the_initial_weights(overrides, start):
    config = compose_cell(detector="fcos", loss="fl", overrides=overrides)
    options = loop_options(config, num_images=100, world_size=1)
    assert protocol(config, options)["backbone"] == start
