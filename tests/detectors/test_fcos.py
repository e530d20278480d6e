"""FCOS compared with torchvision's FCOS and a slow reference, and encode-decode round trips of ground truth."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection import FCOS_ResNet50_FPN_Weights
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou

import detectors.dense
from afl.losses import ClassificationLoss
from detectors.backbone import ResNetBackbone
from detectors.contract import ClassCounts, weighted_sum
from detectors.fcos import FCOS, box_centerness, boxes_from_distances
from tests.detectors.cases import Curious, make_targets, small_network
from tests.detectors.round_trip import BlankBackbone, ground_truth

STRIDES = (8, 16, 32, 64, 128)


small_fcos = partial(small_network, FCOS)


def random_boxes(generator, count, size, smallest=4.0):
    """Boxes (count, 4) of all sizes whose areas differ by at least 32, because torchvision compares 1e8 - area in float32."""
    boxes = torch.empty(0, 4)
    while len(boxes) < count:
        sides = smallest * (size / smallest) ** torch.rand(1, 2, generator=generator)
        low = torch.rand(1, 2, generator=generator) * (size - sides)
        box = torch.cat([low, low + sides], 1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        if ((areas - sides.prod()).abs() > 32).all():
            boxes = torch.cat([boxes, box])
    return boxes


class _Recorder(torch.nn.Module):
    """Replaces torchvision's head and records the matches passed to ``compute_loss``."""

    def __init__(self, head):
        super().__init__()
        self.head, self.matched = head, None

    def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
        self.matched = torch.stack(matched_idxs)
        return self.head.compute_loss(targets, head_outputs, anchors, matched_idxs)


@pytest.fixture(scope="module")
def with_torchvision():
    """Both detectors on one set of random outputs and boxes, with torchvision's locations at i * stride."""
    generator = torch.Generator().manual_seed(0)
    size, classes, batch = 512, 5, 3
    backbone = torch.nn.Conv2d(3, 8, 1)
    backbone.out_channels = 32
    theirs = TorchvisionFCOS(
        backbone,
        num_classes=classes,
        anchor_generator=AnchorGenerator(tuple((s,) for s in STRIDES), ((1.0,),) * len(STRIDES)),
        score_thresh=0.2,
    )
    theirs.head = _Recorder(theirs.head)
    grids = [(size // s, size // s) for s in STRIDES]
    per_level = [h * w for h, w in grids]
    steps = [[torch.tensor(s), torch.tensor(s)] for s in STRIDES]
    anchors = torch.cat(theirs.anchor_generator.grid_anchors(grids, steps))
    number = len(anchors)
    raw = {
        "logits": torch.randn(batch, number, classes, generator=generator) * 2 - 3,
        "distances": torch.randn(batch, number, 4, generator=generator) * 2 + 2,
        "centerness": torch.randn(batch, number, generator=generator),
    }
    # Right and bottom extend beyond their cell, so that no box is empty; torchvision keeps empty boxes, and this project drops them.
    raw["distances"][..., 2:].clamp_(min=0.2)
    ours = small_fcos(classes, strides=STRIDES)
    outputs = raw | {
        "points": (anchors[:, :2] + anchors[:, 2:]) / 2,
        "strides": anchors[:, 2] - anchors[:, 0],
        "level_sizes": torch.tensor(per_level),
    }
    head_outputs = {
        "cls_logits": raw["logits"],
        "bbox_regression": raw["distances"].relu(),
        "bbox_ctrness": raw["centerness"].unsqueeze(-1),
    }
    boxes = [random_boxes(generator, n, size) for n in (25, 0, 8)]
    labels = [torch.randint(classes, (len(b),), generator=generator) for b in boxes]
    listed = [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]
    losses = theirs.compute_loss(listed, head_outputs, [anchors] * batch, per_level)
    targets = make_targets(boxes, labels, size=(size, size))
    return ours, theirs, outputs, head_outputs, anchors, per_level, targets, losses


def test_parameter_counts_equal_the_published_ones():
    for name, num_classes, parameters in (
        ("resnet50", 80, 32_244_245),
        ("resnet50", 91, FCOS_ResNet50_FPN_Weights.COCO_V1.meta["num_params"]),
        ("resnet18", 80, 19_268_117),
    ):
        with torch.device("meta"):
            backbone = ResNetBackbone(name=name, pretrained=False, frozen_batch_norm=True)
            model = FCOS(
                backbone=backbone,
                classes=ClassCounts(torch.ones(num_classes), torch.ones(num_classes)),
                loss=ClassificationLoss,
            )
        assert sum(p.numel() for p in model.parameters()) == parameters


def test_targets_equal_torchvision(with_torchvision):
    ours, theirs, outputs, _, _, _, targets, _ = with_torchvision
    match = ours.match(outputs, targets)
    assert (match >= 0).sum() > 100
    assert torch.equal(match, theirs.head.matched)


def test_losses_equal_torchvision(with_torchvision):
    ours, _, outputs, _, _, _, targets, theirs = with_torchvision
    losses = ours.losses(outputs, targets)
    names = {"classification": "classification", "box": "bbox_regression", "centerness": "bbox_ctrness"}
    for own, other in names.items():
        torch.testing.assert_close(losses[own], theirs[other], rtol=1e-5, atol=0)


def test_decode_equals_torchvision(with_torchvision):
    ours, theirs, outputs, head_outputs, anchors, per_level, targets, _ = with_torchvision
    split = {name: list(value.split(per_level, dim=1)) for name, value in head_outputs.items()}
    sizes = targets.image_sizes
    expected = theirs.postprocess_detections(
        split, [list(anchors.split(per_level))] * len(sizes), [tuple(s) for s in sizes.tolist()]
    )
    for found, wanted in zip(ours.decode(outputs, sizes), expected, strict=True):
        assert len(found.scores) == 100
        torch.testing.assert_close(found.scores, wanted["scores"])
        torch.testing.assert_close(found.boxes, wanted["boxes"])
        assert torch.equal(found.labels, wanted["labels"])


@pytest.mark.parametrize(("radius", "reach"), [(1.5, 8.0), (2.25, 4.0), (0.6, 2.0)])
def test_assignment_equals_a_loop_over_locations_and_objects(radius, reach):
    generator = torch.Generator().manual_seed(int(10 * radius))
    model = small_fcos(3, center_radius=radius, level_reach=reach)
    boxes = [random_boxes(generator, n, 64, smallest=1.0) for n in (9, 3)]
    labels = [torch.randint(3, (len(b),), generator=generator) for b in boxes]
    ignored = [torch.rand(len(b), generator=generator) < 0.3 for b in boxes]
    targets = make_targets(boxes, labels, ignored, size=(64, 64))
    outputs = model(torch.zeros(2, 3, 64, 64))
    target, positives = model.assign(outputs, targets)
    location, chosen = positives.location, positives.boxes

    positive, in_ignored = {}, set()
    points, strides = outputs["points"].tolist(), outputs["strides"].tolist()
    for i in range(2):
        objects = [tuple(box) for box in boxes[i].tolist()]
        for a, ((x, y), stride) in enumerate(zip(points, strides, strict=True)):
            candidates = []
            for k, (x1, y1, x2, y2) in enumerate(objects):
                sides = (x - x1, y - y1, x2 - x, y2 - y)
                if ignored[i][k]:
                    if min(sides) >= 0:
                        in_ignored.add(i * len(points) + a)
                    continue
                low = 0 if stride == 4 else reach * stride / 2
                high = float("inf") if stride == 16 else reach * stride
                middle = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
                if min(sides) > 0 and middle < radius * stride and low < max(sides) <= high:
                    candidates.append(((x2 - x1) * (y2 - y1), k))
            if candidates:
                k = min(candidates)[1]
                positive[i * len(points) + a] = (int(labels[i][k]), objects[k])

    assert target.positive.tolist() == [at * 3 + positive[at][0] for at in sorted(positive)]
    assert location.tolist() == sorted(positive)
    assert chosen.tolist() == [list(positive[at][1]) for at in sorted(positive)]
    assert set(target.ignored.nonzero().flatten().tolist()) == in_ignored - set(positive)


def test_a_distance_on_the_border_of_two_ranges_belongs_to_one_level():
    model = small_fcos(3)
    outputs = model(torch.zeros(1, 3, 96, 96))
    # The location (30, 30) of the first level, with 32 pixels = 8 strides to the farthest side.
    targets = make_targets([[[20.0, 20.0, 62.0, 40.0]]], [[0]])
    location = model.assign(outputs, targets)[1].location
    at = (outputs["points"] == torch.tensor([30.0, 30.0])).all(1).nonzero().flatten().tolist()
    # The box is 42 pixels wide with its centre at (41, 30), so a larger centre radius includes the location.
    wide = small_fcos(3, center_radius=3.0)
    location = wide.assign(outputs, targets)[1].location
    farthest = (outputs["points"][location][:, 0] - 20).maximum(62 - outputs["points"][location][:, 0])
    assert at[0] in location.tolist()
    assert (farthest[outputs["strides"][location] == 4] <= 32).all()
    assert (farthest[outputs["strides"][location] == 8] > 32).all()


def test_strides_that_do_not_double_are_rejected():
    """A level starts at the reach of the level below it only if strides double."""
    with pytest.raises(ValueError, match="twice the stride of the level before it"):
        small_fcos(3, strides=(4, 16))


def test_centerness_equals_the_papers_equation():
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    assert box_centerness(torch.tensor([[1.0, 1.0]]), box).item() == pytest.approx(1 / 3)
    assert box_centerness(torch.tensor([[2.0, 2.0]]), box).item() == 1
    assert box_centerness(torch.tensor([[0.0, 2.0]]), box).item() == 0


@pytest.mark.parametrize("name", ["shapes", "coco_sample", "bccd"])
def test_decoding_encoded_ground_truth_gives_full_ap(name, shared_data, tmp_path):
    truth = ground_truth(name, shared_data, tmp_path)
    model = small_fcos(
        truth.index.num_classes,
        strides=truth.strides,
        backbone=BlankBackbone(*truth.strides[:3]),
        max_detections=300,
    )
    found, without, objects = {}, {}, 0
    for number, image in truth.images.items():
        with torch.no_grad():
            outputs = model(image.pixels)
        (match,) = model.match(outputs, image.targets)
        encode(outputs, match, image.targets)
        found[number] = model.decode(outputs, image.targets.image_sizes)[0]
        without[number] = image.targets.valid.clone()
        without[number][0, match[match >= 0]] = False
        objects += int(image.targets.valid.sum())
    # Objects without a positive location cannot be found. They are few.
    assert sum(int(own.sum()) for own in without.values()) <= 0.01 * objects
    assert truth.average_precision(found, without) >= 0.999
    assert truth.average_precision(found, {}) >= 0.99


def encode(outputs, match, targets):
    """Write the outputs of one image that describe the matched objects exactly."""
    positive = match >= 0
    boxes = targets.boxes[0, match[positive]]
    points = outputs["points"][positive]
    distances = torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], 1)
    distances = distances / outputs["strides"][positive].unsqueeze(1)
    quality = box_centerness(points, boxes)
    outputs["logits"].fill_(-15)
    outputs["logits"][0, positive, targets.labels[0, match[positive]]] = 15.0
    outputs["distances"][0, positive] = distances
    outputs["centerness"][0, positive] = torch.logit(quality, eps=1e-6)


def test_padding_of_positives_does_not_change_the_losses(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    model = small_fcos(3)
    boxes = [random_boxes(generator, n, 96) for n in (5, 0, 2)]
    targets = make_targets(boxes, [torch.randint(3, (len(b),), generator=generator) for b in boxes])
    images = torch.randn(3, 3, 96, 96, generator=generator)

    def gradients():
        model.zero_grad()
        losses = model.losses(model(images), targets)
        weighted_sum(losses, model.loss_weights).backward()
        return losses, [p.grad.clone() for p in model.parameters()]

    losses, expected = gradients()
    monkeypatch.setattr(
        detectors.dense,
        "nonzero_padded",
        lambda mask, size: torch.nonzero_static(mask, size=size, fill_value=-1).flatten(),
    )
    assert model.assign(model(images), targets)[1].location.eq(-1).any()
    padded, found = gradients()
    torch.testing.assert_close(padded, losses)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_overlap_of_positives_equals_torchvisions_box_iou():
    model = small_fcos(3, loss=Curious)
    targets = make_targets([[[10.0, 10.0, 40.0, 50.0], [50.0, 20.0, 70.0, 44.0]]], [[2, 1]])
    outputs = model(torch.randn(1, 3, 96, 96))
    outputs["distances"] = outputs["distances"] + 2
    losses = model.losses(outputs, targets)
    _, target, _, localization = model.classification["classification"].call
    at = target.positive_location
    boxes = boxes_from_distances(outputs["points"][at], outputs["strides"][at], outputs["distances"][0, at])
    expected = box_iou(boxes, targets.boxes[0]).gather(1, target.object.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(target.overlap, expected)
    assert not target.overlap.requires_grad
    torch.testing.assert_close(localization, (losses["box"] + losses["centerness"]).detach())
