"""RetinaNet compared with torchvision's matcher, coder, loss and post-processing, and with the published parameter counts."""

from functools import partial

import pytest
import torch
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou, sigmoid_focal_loss

from afl.losses import ClassificationLoss
from detectors.anchors import (
    BACKGROUND,
    BETWEEN,
    anchors_in_ignored,
    base_anchors,
    decode_deltas,
    encode_deltas,
    grid_anchors,
    match_anchors,
)
from detectors.backbone import ResNetBackbone
from detectors.contract import ClassCounts, Targets, weighted_sum
from detectors.retinanet import RetinaNet
from tests.detectors.cases import small_network
from tests.detectors.round_trip import BlankBackbone, ground_truth

network = partial(small_network, RetinaNet)


def random_targets(seed: int, batch: int, count: int, classes: int, size: int = 64) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, count, 2, generator=generator) * (size - 40)
    boxes = torch.cat([corner, corner + 5 + torch.rand(batch, count, 2, generator=generator) * 34], -1)
    labels = torch.randint(classes, (batch, count), generator=generator)
    return Targets(boxes, labels, torch.zeros_like(labels, dtype=torch.bool), torch.full((batch, 2), size))


COUNTS = [
    ("resnet18", 80, 21_400_500),
    ("resnet50", 80, 37_915_572),
    ("resnet101", 80, 56_855_476),
    ("resnet50", 20, 36_670_872),
    ("resnet50", 1203, 61_212_207),
]


@pytest.mark.parametrize(("backbone", "classes", "expected"), COUNTS)
def test_parameter_counts_equal_the_published_ones(backbone, classes, expected):
    with torch.device("meta"):
        model = RetinaNet(
            backbone=ResNetBackbone(name=backbone, pretrained=False, frozen_batch_norm=True),
            classes=ClassCounts(torch.ones(classes), torch.ones(classes)),
            loss=lambda info: torch.nn.Identity(),
        )
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("seed", range(5))
def test_matching_equals_torchvision_matcher(seed):
    base = base_anchors(16.0, (0.5, 1.0, 2.0), (1.0, 1.5))
    anchors = grid_anchors(base, 8, 8, 8)
    targets = random_targets(seed, 3, 6, 4)
    match, overlap = match_anchors(anchors, targets.boxes, targets.valid)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    for b in range(3):
        iou = box_iou(targets.boxes[b], anchors)
        torch.testing.assert_close(match[b], matcher(iou))
        torch.testing.assert_close(overlap[b], iou.amax(0))
    assert (BACKGROUND, BETWEEN) == (Matcher.BELOW_LOW_THRESHOLD, Matcher.BETWEEN_THRESHOLDS)


def test_anchors_have_torchvisions_sides_around_the_centres_of_cells():
    ratios, scales = (0.5, 1.0, 2.0), (1.0, 1.5)
    anchors = network(2, anchor_ratios=ratios, anchor_scales=scales)(torch.zeros(1, 3, 64, 96))["anchors"]
    expected = []
    for stride in (4, 8, 16):
        sizes = [4 * stride * scale for scale in scales]
        base = AnchorGenerator().generate_anchors(sizes, ratios)  # rounded to whole pixels
        centres = [(x, y) for y in range(64 // stride) for x in range(96 // stride)]
        expected.append((torch.tensor(centres).repeat(1, 2).unsqueeze(1) + 0.5) * stride + base)
    expected = torch.cat([level.flatten(0, 1) for level in expected])
    assert anchors.shape == expected.shape and (anchors - expected).abs().max() <= 0.5


def test_padding_and_objects_without_anchors_have_no_match():
    anchors = grid_anchors(base_anchors(8.0, (1.0,), (1.0,)), 2, 2, 8)
    boxes = torch.tensor([[[500.0, 500.0, 510.0, 510.0], [0.0, 0.0, 8.0, 8.0]]])
    match, _ = match_anchors(anchors, boxes, torch.tensor([[True, False]]))
    assert (match == BACKGROUND).all()


def test_deltas_equal_torchvision_coder():
    targets = random_targets(0, 1, 20, 3)
    anchors = targets.boxes[0].roll(1, 0)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    deltas = encode_deltas(anchors, targets.boxes[0])
    torch.testing.assert_close(deltas, coder.encode_single(targets.boxes[0], anchors))
    wild = deltas * 9
    torch.testing.assert_close(
        decode_deltas(anchors, wild), coder.decode_single(wild, anchors), rtol=1e-4, atol=1e-3
    )
    torch.testing.assert_close(decode_deltas(anchors, deltas), targets.boxes[0])


def test_anchors_mostly_inside_a_crowd_are_ignored():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [8.0, 0.0, 18.0, 10.0]])
    crowd = torch.tensor([[[0.0, 0.0, 12.0, 10.0]]])
    assert anchors_in_ignored(anchors, crowd, torch.tensor([[True]])).tolist() == [[True, False]]


def test_losses_equal_torchvision_formulas():
    model, targets = network(4).eval(), random_targets(1, 2, 5, 4)
    outputs = model(torch.randn(2, 3, 64, 64))
    # Large enough for an ignored anchor to count.
    outputs["logits"] = 3 * torch.randn(outputs["logits"].shape, generator=torch.Generator().manual_seed(2))
    losses = model.losses(outputs, targets)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    classification, box, positives = 0.0, 0.0, 0
    for b in range(2):
        match = matcher(box_iou(targets.boxes[b], outputs["anchors"]))
        wanted = torch.zeros_like(outputs["logits"][b])
        positive = match >= 0
        wanted[positive, targets.labels[b][match[positive]]] = 1.0
        kept = match != Matcher.BETWEEN_THRESHOLDS
        classification += sigmoid_focal_loss(outputs["logits"][b][kept], wanted[kept], reduction="sum")
        encoded = BoxCoder((1.0,) * 4).encode_single(
            targets.boxes[b][match[positive]], outputs["anchors"][positive]
        )
        box += (outputs["deltas"][b][positive] - encoded).abs().sum()
        positives += int(positive.sum())
    torch.testing.assert_close(losses["classification"], classification / positives)
    torch.testing.assert_close(losses["box"], box / positives)


def test_decode_equals_torchvision_postprocessing():
    torch.manual_seed(0)
    model = network(3, max_detections=10_000).eval()
    outputs = {k: v.detach() for k, v in model(torch.randn(2, 3, 64, 64)).items()}
    outputs["logits"] = torch.randn_like(outputs["logits"]) * 2 - 2
    outputs["deltas"] = torch.randn_like(outputs["deltas"]) * 0.3
    theirs = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3, detections_per_img=10_000
    )
    levels = outputs["level_sizes"].tolist()
    expected = theirs.postprocess_detections(
        {
            "cls_logits": list(outputs["logits"].split(levels, 1)),
            "bbox_regression": list(outputs["deltas"].split(levels, 1)),
        },
        [list(outputs["anchors"].split(levels))] * 2,
        [(64, 64), (50, 60)],
    )
    for found, want in zip(model.decode(outputs, torch.tensor([[64, 64], [50, 60]])), expected, strict=True):
        # torchvision keeps boxes outside the image, which have no area after clipping
        solid = (want["boxes"][:, 2:] > want["boxes"][:, :2]).all(1)
        torch.testing.assert_close(found.scores, want["scores"][solid])
        torch.testing.assert_close(found.boxes, want["boxes"][solid])
        torch.testing.assert_close(found.labels, want["labels"][solid])


@pytest.mark.parametrize("name", ["shapes", "coco_sample", "bccd"])
def test_decoding_encoded_boxes_restores_them(name, request, tmp_path):
    folder = None if name == "shapes" else request.getfixturevalue("shared_data")
    truth = ground_truth(name, folder, tmp_path)
    classes = truth.index.num_classes
    model = RetinaNet(
        backbone=BlankBackbone(*truth.strides), classes=ClassCounts(torch.ones(classes), torch.ones(classes)),
        loss=ClassificationLoss, strides=truth.strides, channels=1, tower_depth=0, max_detections=300,
    ).eval()  # fmt: skip
    found, unmatched = {}, {}
    for number, image in truth.images.items():
        outputs = model(image.pixels)
        target, positives = model.assign(outputs, image.targets)
        location, boxes = positives.location, positives.boxes
        outputs["logits"] = torch.full_like(outputs["logits"], -20.0)
        outputs["logits"].view(-1)[target.positive] = 10.0
        outputs["deltas"] = torch.zeros_like(outputs["deltas"])
        outputs["deltas"][0, location] = encode_deltas(outputs["anchors"][location], boxes)
        found[number] = model.decode(outputs, image.targets.image_sizes)[0]
        # An object cannot be found if a second object overlaps its best anchor more.
        claimed = torch.zeros(image.targets.labels.numel(), dtype=torch.bool)
        claimed[target.object] = True
        unmatched[number] = ~claimed & image.targets.valid.flatten()
    lost = sum(int(u.sum()) for u in unmatched.values())
    total = sum(int(image.targets.valid.sum()) for image in truth.images.values())
    print(f"{name}: {lost} of {total} objects have no anchor of their own")
    assert lost <= 0.02 * total
    # NMS at 0.5 removes one of two objects of a class with a larger overlap; there are few.
    assert truth.average_precision(found, {n: u.unsqueeze(0) for n, u in unmatched.items()}) >= 0.99


@pytest.mark.parametrize("count", [0, 1, 150])
def test_any_number_of_objects_and_a_batch_of_one_work(count):
    model = network(3).train()
    targets = random_targets(2, 1, count, 3)
    losses = model.losses(model(torch.randn(1, 3, 64, 64)), targets)
    weighted_sum(losses, model.loss_weights).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
