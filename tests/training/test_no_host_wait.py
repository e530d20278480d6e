"""A training step on a device without memory or values, where reading a value is an error: no operation waits for the device.

Torch's ``meta`` device rejects operations that depend on values (``item``, ``nonzero``, indexing by a mask), and uses the code
paths of an accelerator. The tests also detect copies between host and device, for which the host would wait.
"""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from afl.config import CONF
from afl.training.build import bound, build_detector
from afl.training.compose import compose_cell
from afl.training.inputs import normalise
from afl.training.optimizer import build_optimizer
from detectors.contract import ClassCounts, Targets, weighted_sum

DEVICE = torch.device("meta")
DETECTORS = ("cornernet", "centernet", "extremenet", "retinanet", "fcos", "objectbox")
LOSSES = sorted(path.stem for path in (CONF / "loss").glob("*.yaml"))


class Crossings(TorchDispatchMode):
    """Operations that have tensors on the host and on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        # A host scalar is passed with the launch of the operation.
        if len({x.device for x in tensors if x.ndim}) > 1:
            self.found.append(f"{function}: {[(x.device.type, tuple(x.shape)) for x in tensors]}")
        return result


@pytest.fixture(autouse=True)
def lists_of_the_kernel(monkeypatch):
    """Return padded lists like the kernel of heat maps, which cannot run here; the path without the kernel waits."""

    def padded(cells, radius, labels, present, *shape):
        objects = labels.numel()

        def indices(count):
            return torch.empty(count, dtype=torch.int64, device=labels.device)

        scale = torch.empty(9 * objects, device=labels.device)
        return [(indices(objects), indices(9 * objects), scale) for _ in range(len(cells))]

    monkeypatch.setattr("detectors.heatmap.gaussian_lists", padded)


@pytest.fixture
def no_constants_on_device(monkeypatch):
    """Tensors created from Python numbers are also copied from the host."""

    def watched(make):
        def call(*args, **kwargs):
            tensor = make(*args, **kwargs)
            assert tensor.device != DEVICE, f"made on the host and copied: {args}"
            return tensor

        return call

    monkeypatch.setattr(torch, "tensor", watched(torch.tensor))
    monkeypatch.setattr(Tensor, "new_tensor", watched(Tensor.new_tensor))


def one_step(detector_name: str, loss: str) -> list[str]:
    """Run forward, losses, backward, clipping and update of one batch; returns the operations with tensors on host and device."""
    config = compose_cell(detector=detector_name, loss=loss, overrides=["dataset=shapes_coco"])
    counts = torch.arange(1.0, 31.0)
    detector = build_detector(config, ClassCounts(3 * counts, counts)).to(DEVICE)
    optimizer = build_optimizer(bound(config.optimizer.factory), detector, 1e-4)
    batch, objects = 2, 5
    targets = Targets(
        boxes=torch.empty(batch, objects, 4, device=DEVICE),
        labels=torch.empty(batch, objects, dtype=torch.int64, device=DEVICE),
        ignored=torch.empty(batch, objects, dtype=torch.bool, device=DEVICE),
        image_sizes=torch.empty(batch, 2, dtype=torch.int64, device=DEVICE),
        extreme_points=torch.empty(batch, objects, 4, 2, device=DEVICE),
        verified=torch.empty(batch, 30, dtype=torch.bool, device=DEVICE),
    )
    images = torch.empty(batch, 3, 96, 96, dtype=torch.uint8, device=DEVICE)
    with Crossings() as crossings:
        outputs = detector(normalise(images, channels_last=True))
        losses = detector.losses(outputs, targets)
        weighted_sum(losses, detector.loss_weights).backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        for classification in detector.classification.values():
            classification.update()
    return crossings.found


@pytest.fixture(autouse=True)
def _statistics_of_pixels_are_there():
    normalise(torch.empty(1, 3, 1, 1, dtype=torch.uint8, device=DEVICE), channels_last=False)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("loss", ["fl", "afl", "afl_balanced"])
def test_a_step_of_every_detector_never_waits_for_the_device(no_constants_on_device, detector, loss):
    assert one_step(detector, loss) == []


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"fl", "afl", "afl_balanced"}))
def test_a_step_of_every_loss_never_waits_for_the_device(no_constants_on_device, loss):
    assert one_step("retinanet", loss) == []


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"fl", "afl", "afl_balanced"}))
def test_a_step_of_every_loss_on_heat_maps_never_waits_for_the_device(no_constants_on_device, loss):
    assert one_step("centernet", loss) == []


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: float(x.max()),
        lambda x: x.masked_select(x > 0),
    ],
)
def test_reading_a_value_of_the_device_is_an_error(read):
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.empty(3, device=DEVICE))


def test_a_copy_to_the_device_is_detected():
    with Crossings() as crossings:
        torch.ones(3).to(DEVICE)
    assert len(crossings.found) == 1


def test_configs_of_all_losses_were_found():
    assert len(LOSSES) > 20 and OmegaConf.load(CONF / "loss" / "afl.yaml").gamma == 2.0
