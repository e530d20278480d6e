"""The inputs of the classification losses compared with the terms and targets of each detector; its defaults with conf/detector."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf

import detectors
from afl.losses import ClassificationLoss
from detectors.backbone import TinyBackbone
from detectors.contract import ClassCounts, weighted_sum
from detectors.normalizer import mean_over_ranks
from tests.detectors.keypoint_cases import random_targets

MAPS = {
    "CornerNet": ["top_left", "bottom_right"],
    "CenterNet": ["heat"],
    "ExtremeNet": ["top", "left", "bottom", "right", "center"],
    "RetinaNet": ["classification"],
    "FCOS": ["classification"],
    "ObjectBox": ["objectness", "class"],
}
HEAT_MAPS = ("CornerNet", "CenterNet", "ExtremeNet")
CLASSES = 3


class Recorder(ClassificationLoss):
    """Keeps the arguments of its last call."""

    uses_overlap = True

    def forward(self, logits, target, normalizer, localization=None):
        self.target, self.normalizer, self.localization = target, normalizer, localization
        return super().forward(logits, target, normalizer)


def built(name: str, **options) -> torch.nn.Module:
    """A detector whose settings differ from each other, so that none can replace another."""
    sizes = {"head_channels": 8} if name in HEAT_MAPS else {"strides": (4, 8, 16), "tower_depth": 1}
    return getattr(detectors, name)(
        backbone=TinyBackbone(widths=(4, 4, 8, 8)),
        classes=ClassCounts(torch.tensor([500.0, 40.0, 6.0]), torch.tensor([100.0, 30.0, 5.0])),
        loss=Recorder,
        channels=8,
        **sizes,
        **options,
    )


@pytest.fixture(params=MAPS)
def trained(request):
    """Name, detector, targets of two images of 64 x 64 pixels with a crowd and unverified classes, and losses."""
    torch.manual_seed(0)
    model = built(request.param)
    for number, name in enumerate(sorted(model.loss_weights)):
        model.loss_weights[name] = 0.5 + number
    targets = random_targets(0, batch=2, count=6, num_classes=CLASSES)
    targets = replace(
        targets,
        ignored=torch.tensor([[False] * 6, [False] * 5 + [True]]),
        verified=torch.tensor([[True, False, True], [True, True, False]]),
    )
    return request.param, model, targets, model.losses(model(torch.randn(2, 3, 64, 64)), targets)


def test_the_maps_together_receive_the_weighted_sum_of_the_other_losses(trained):
    name, model, _, losses = trained
    others = {term: value for term, value in losses.items() if term not in MAPS[name]}
    expected = sum(model.loss_weights[term] * value for term, value in others.items())
    assert others and list(model.classification) == MAPS[name]
    parts = [loss.localization for loss in model.classification.values() if loss.localization is not None]
    torch.testing.assert_close(sum(parts), expected.detach())
    assert not any(part.requires_grad for part in parts)
    if name in HEAT_MAPS:
        assert len(parts) == len(MAPS[name]) and len({part.item() for part in parts}) == 1
    assert weighted_sum(losses, {}).item() == pytest.approx(sum(value.item() for value in losses.values()))


def test_every_map_is_divided_by_its_number_of_positives_and_knows_the_verified_classes(trained):
    name, model, targets, _ = trained
    for of_map, loss in model.classification.items():
        assert loss.normalizer.item() == loss.target.num_positives().item() > 1
        verified = None if of_map == "objectness" else targets.verified
        assert loss.target.verified is verified
    if name == "RetinaNet":
        assert (loss.target.location_overlap > 0.5).any()


@pytest.mark.parametrize("name", MAPS)
def test_the_loss_of_a_map_knows_its_prior_its_balance_and_the_counts(name):
    objectbox = {"class_prior": 0.05, "class_alpha": 0.4} if name == "ObjectBox" else {}
    model = built(name, prior=0.02, alpha=0.3, **objectbox)
    for of_map, loss in model.classification.items():
        info = loss.info
        assert (info.name, info.dense_positives) == (of_map, name not in HEAT_MAPS)
        assert (info.prior, info.alpha) == ((0.05, 0.4) if of_map == "class" else (0.02, 0.3))
        # An object of any class counts for the objectness; at least the images of the most common class have one.
        objectness = of_map == "objectness"
        assert info.instances_per_class.tolist() == ([546.0] if objectness else [500.0, 40.0, 6.0])
        assert info.images_per_class.tolist() == ([100.0] if objectness else [100.0, 30.0, 5.0])
        assert all(
            layer.bias.sigmoid().allclose(torch.tensor(info.prior)) for layer in model.class_layers()[of_map]
        )


@pytest.mark.parametrize(("own", "others", "expected"), [(3, 5, 4.0), (0, 3, 1.5), (0, 0, 0.5), (1, 0, 0.5)])
def test_the_normaliser_is_the_mean_over_processes_of_a_sum_of_at_least_one(
    monkeypatch, own, others, expected
):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.add_(others))
    count = torch.tensor(float(own))
    assert mean_over_ranks(count).item() == expected and count == own


@pytest.mark.parametrize(("name", "apart", "shared"), [("CornerNet", 12, 8), ("ExtremeNet", 18, 14)])
def test_branches_share_a_convolution_only_on_request(name, apart, shared):
    """Each of the branches of a key point has a 3x3 and a 1x1 convolution; sharing leaves one 3x3 for a point."""
    for choice, expected in ((False, apart), (True, shared)):
        heads = built(name, shared_branches=choice).heads
        assert sum(isinstance(layer, torch.nn.Conv2d) for layer in heads.modules()) == expected


@pytest.mark.parametrize("name", ["RetinaNet", "FCOS", "ObjectBox"])
def test_the_layers_of_a_pyramids_heads_start_small(name):
    """Standard deviation 0.01 (Lin et al. 2017, 4.1)."""
    model = built(name, norm="none")
    parts = [part for key, part in model.named_children() if "tower" in key or "layer" in key]
    convs = [layer for part in parts for layer in part.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(convs) >= 4
    for conv in convs:
        assert conv.weight.pow(2).mean().sqrt().item() == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize("name", MAPS)
def test_a_detector_alone_has_the_settings_of_its_config(name, repository):
    config = OmegaConf.load(repository / "conf" / "detector" / f"{name.lower()}.yaml")
    settings = OmegaConf.to_container(config.detector, resolve=False)
    parameters = inspect.signature(getattr(detectors, name)).parameters
    written = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in settings.items()
        if key != "_target_" and not str(value).startswith("${")
    }
    assert len(written) >= 5 and written == {key: parameters[key].default for key in written}


@pytest.mark.parametrize("name", ["RetinaNet", "FCOS", "ObjectBox"])
def test_a_positive_in_a_crowd_still_learns_all_classes(name):
    targets = random_targets(1, batch=1, count=2, num_classes=CLASSES)
    targets.boxes[0] = torch.tensor([[16.0, 16, 48, 48], [0, 0, 64, 64]])
    targets = replace(targets, ignored=torch.tensor([[False, True]]))
    model = built(name)
    model.losses(model(torch.randn(1, 3, 64, 64)), targets)
    target = next(iter(model.classification.values())).target
    assert target.ignored.any() and not target.ignored[target.positive_location].any()
