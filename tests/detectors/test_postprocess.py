"""Detections of a batch compared with those of each image, level by level, with torchvision's NMS for each class."""

import pytest
import torch
from torchvision.ops import nms

import detectors.postprocess
from detectors.backbone import TinyBackbone
from detectors.contract import ClassCounts
from detectors.fcos import FCOS
from detectors.objectbox import ObjectBox
from detectors.postprocess import detect_on_levels, on_cpu, per_class_nms, rows_of_images
from detectors.retinanet import RetinaNet


def one_image(levels, size, threshold, candidates, iou, limit):
    """(score, class, box) of one image, best first, from (scores (L, C), boxes (L, 4)) of each level."""
    found = []
    for scores, boxes in levels:
        pairs = sorted(
            ((float(s), c, place) for place, row in enumerate(scores) for c, s in enumerate(row)),
            reverse=True,
        )[:candidates]
        found += [(s, c, boxes[place]) for s, c, place in pairs if s > threshold]
    kept = []
    high = torch.tensor([size[1], size[0], size[1], size[0]])
    for label in {c for _, c, _ in found}:
        own = [(s, torch.minimum(b.clamp(min=0), high)) for s, c, b in found if c == label]
        own = [(s, b) for s, b in own if (b[2:] > b[:2]).all()]
        if own:
            scores, boxes = torch.tensor([s for s, _ in own]), torch.stack([b for _, b in own])
            kept += [(float(scores[i]), label, boxes[i]) for i in nms(boxes, scores, iou).tolist()]
    return sorted(kept, key=lambda entry: -entry[0])[:limit]


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_batch_has_the_detections_of_its_images(monkeypatch, at_once):
    monkeypatch.setattr(detectors.postprocess, "_images_at_once", lambda device, scores: at_once)
    generator = torch.Generator().manual_seed(0)
    level_sizes, classes = [40, 12, 3], 3
    logits = torch.randn(3, 55, classes, generator=generator)
    corner = torch.rand(3, 55, 2, generator=generator) * 60 - 10
    boxes = torch.cat([corner, corner + torch.rand(3, 55, 2, generator=generator) * 40], -1)
    base = torch.rand(55, 1, generator=generator)
    sizes = [(64, 64), (30, 50), (64, 20)]
    found = detect_on_levels(
        {"logits": logits, "boxes": boxes, "base": base},
        level_sizes,
        torch.tensor(sizes),
        num_classes=classes,
        per_image=("logits", "boxes"),
        shared=("base",),
        scores=lambda level: level["logits"].sigmoid() * level["base"],
        boxes=lambda level, at: rows_of_images(level["boxes"], at) + level["base"][at],
        threshold=0.3,
        candidates=20,
        iou=0.5,
        limit=15,
    )
    for i, size in enumerate(sizes):
        scores, placed = logits[i].sigmoid() * base, boxes[i] + base
        levels = zip(scores.split(level_sizes), placed.split(level_sizes), strict=True)
        expected = one_image(levels, size, 0.3, 20, 0.5, 15)
        assert len(expected) == len(found[i].scores) == 15
        torch.testing.assert_close(found[i].scores, torch.tensor([s for s, _, _ in expected]))
        assert found[i].labels.tolist() == [c for _, c, _ in expected]
        torch.testing.assert_close(found[i].boxes, torch.stack([b for _, _, b in expected]))


@pytest.mark.parametrize("kind", [RetinaNet, FCOS, ObjectBox])
def test_detectors_decode_a_batch_like_single_images(monkeypatch, kind):
    torch.manual_seed(0)
    detector = kind(
        backbone=TinyBackbone(widths=(8, 8, 8, 8)),
        classes=ClassCounts(torch.ones(3), torch.ones(3)),
        loss=lambda info: torch.nn.Identity(),
        strides=(4, 8, 16),
        channels=8,
        tower_depth=1,
        score_threshold=0.01,
    ).eval()
    outputs = {name: value.detach() for name, value in detector(torch.randn(4, 3, 64, 64)).items()}
    for name in ("logits", "classes", "objectness", "centerness", "deltas", "distances"):
        if name in outputs:
            outputs[name] = torch.randn(outputs[name].shape)
    sizes = torch.tensor([[64, 64], [40, 64], [64, 50], [33, 21]])
    alone = detector.decode(outputs, sizes)
    monkeypatch.setattr(detectors.postprocess, "_images_at_once", lambda device, scores: 3)
    for one, other in zip(alone, detector.decode(outputs, sizes), strict=True):
        assert len(one.scores) > 10
        for name in ("boxes", "scores", "labels"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name))


def test_large_class_numbers_survive_the_transfer():
    labels = torch.tensor([[0, 1202, 2**24 - 1]])
    boxes, scores, found = on_cpu(torch.rand(1, 3, 4), torch.rand(1, 3), labels)
    assert boxes.shape == (1, 3, 4) and scores.shape == (1, 3)
    assert torch.equal(found, labels)


def test_suppression_is_exact_for_the_last_of_many_classes():
    torch.manual_seed(0)
    corners = torch.rand(60, 300, 2) * 1200
    boxes = torch.cat([corners, corners + 6 + 24 * torch.rand(60, 300, 2)], -1)
    boxes[:, 150:] = boxes[:, :150] + torch.randn(60, 150, 4)
    for own in boxes:
        scores, labels = torch.rand(300), torch.randint(1100, 1203, (150,)).repeat(2)
        expected = [
            place
            for label in labels.unique()
            for place in (labels == label)
            .nonzero()[:, 0][nms(own[labels == label], scores[labels == label], 0.5)]
            .tolist()
        ]
        kept = per_class_nms(own, scores, labels, 0.5)
        assert sorted(kept.tolist()) == sorted(expected)
        assert torch.equal(scores[kept], scores[kept].sort(descending=True).values)
