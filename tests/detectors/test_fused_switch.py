"""Losses of every detector with the fused kernels forced on, compared with the same losses with the kernels forced off."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from afl.config import CONF
from afl.losses.classification_loss import ClassificationLoss
from afl.training.build import build_detector
from afl.training.compose import compose_cell
from detectors.boxes import middles_of_sides
from detectors.contract import ClassCounts, Targets, weighted_sum

kernels = pytest.importorskip("afl.losses.triton_kernel")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLASSES, SIZE = 7, 64
DETECTORS = ("cornernet", "centernet", "extremenet", "retinanet", "fcos", "objectbox")
LOSSES = sorted(path.stem for path in (CONF / "loss").glob("*.yaml"))


def a_batch() -> Targets:
    """Two images: three objects and a crowd; one object and padding."""
    boxes = torch.tensor(
        [
            [
                [3.0, 4.0, 30.0, 40.0],
                [20.0, 10.0, 60.0, 50.0],
                [40.0, 30.0, 52.0, 44.0],
                [0.0, 48.0, 16.0, 64.0],
            ],
            [[8.0, 8.0, 40.0, 36.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]],
        ]
    )
    verified = torch.ones(2, CLASSES, dtype=torch.bool)
    verified[1, 5] = False
    return Targets(
        boxes=boxes.to(DEVICE),
        labels=torch.tensor([[0, 3, 3, 2], [6, -1, -1, -1]], device=DEVICE),
        ignored=torch.tensor([[False, False, False, True], [False] * 4], device=DEVICE),
        image_sizes=torch.full((2, 2), SIZE, device=DEVICE),
        extreme_points=middles_of_sides(boxes).to(DEVICE),
        verified=verified.to(DEVICE),
    )


def outcome(name: str, loss: str) -> tuple[dict, dict, dict]:
    """Loss terms, gradients of all raw outputs, and the losses' running state after an update."""
    torch.manual_seed(0)
    config = compose_cell(detector=name, loss=loss, overrides=["dataset=shapes_coco"])
    counts = torch.logspace(3, 0, CLASSES)
    detector = build_detector(config, ClassCounts(counts, counts)).to(DEVICE).train()
    with torch.no_grad():
        outputs = detector(
            torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        )
    for key, value in outputs.items():
        if value.is_floating_point() and key not in ("anchors", "points", "strides"):
            # The output of an untrained head is almost constant, so it is spread out, as in training.
            noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)
            outputs[key] = (value + noise).requires_grad_()
    terms = detector.losses(outputs, a_batch())
    weighted_sum(terms, detector.loss_weights).backward()
    for classification in detector.classification.values():
        classification.update()
    gradients = {key: value.grad for key, value in outputs.items() if value.requires_grad}
    return terms, gradients, detector.classification.state_dict()


def assert_same_with_and_without_kernels(monkeypatch, name: str, loss: str) -> int:
    """Compare both paths; returns the number of kernel calls."""
    calls = []
    for module in (kernels, import_module("afl.losses.triton_dense")):
        run = module.loss_and_gradient
        monkeypatch.setattr(
            module, "loss_and_gradient", lambda *a, run=run, **k: calls.append(1) or run(*a, **k)
        )
    monkeypatch.setenv("AFL_TRITON", "off")
    expected = outcome(name, loss)
    assert not calls
    monkeypatch.setenv("AFL_TRITON", "on")
    actual = outcome(name, loss)
    torch.testing.assert_close(actual[0], expected[0], rtol=2e-5, atol=1e-6)
    assert any(value.abs().max() > 0 for value in expected[1].values() if value is not None)
    for key, gradient in expected[1].items():
        if gradient is None:
            assert actual[1][key] is None
            continue
        scale = float(gradient.abs().max())
        torch.testing.assert_close(actual[1][key], gradient, rtol=5e-5, atol=1e-6 * scale + 1e-12, msg=key)
    torch.testing.assert_close(actual[2], expected[2], rtol=2e-5, atol=1e-6)
    return len(calls)


@pytest.mark.parametrize("loss", ["fl", "afl"])
@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_has_the_same_losses_with_and_without_fused_kernels(monkeypatch, name, loss):
    assert assert_same_with_and_without_kernels(monkeypatch, name, loss) > 0


@pytest.mark.parametrize("name", ["retinanet", "centernet"])
@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"fl", "afl"}))
def test_every_loss_is_the_same_with_and_without_fused_kernels(monkeypatch, name, loss):
    ran = assert_same_with_and_without_kernels(monkeypatch, name, loss)
    config = compose_cell(detector=name, loss=loss, overrides=["dataset=shapes_coco"]).loss
    if config._target_.endswith(ClassificationLoss.__name__):
        assert ran > 0
