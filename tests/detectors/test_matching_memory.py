"""Matching of many objects compared with a table of all pairs; its memory does not grow with the number of objects."""

import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

import detectors.boxes
from afl.benchmarks.harness import peak_bytes
from detectors.anchors import anchors_in_ignored, base_anchors, grid_anchors, match_anchors
from detectors.boxes import blocks_of_objects, box_area, cells_inside, pairwise_intersection


def scene(count: int, seed: int = 0, batch: int = 2, side: int = 16):
    """Anchors, boxes (some occur twice, so that their IoUs are equal), and a mask with holes."""
    generator = torch.Generator().manual_seed(seed)
    anchors = grid_anchors(base_anchors(32.0, (0.5, 1.0, 2.0), (1.0,)), side, side, 8)
    corner = torch.rand(batch, count, 2, generator=generator) * side * 6
    boxes = torch.cat([corner, corner + 4 + torch.rand(batch, count, 2, generator=generator) * 40], -1)
    boxes[:, count // 2 :] = boxes[:, : count - count // 2]
    mask = torch.rand(batch, count, generator=generator) < 0.8
    mask[0, (count + 1) // 2 :] = False  # the images have different numbers of objects
    return anchors, boxes, mask


@pytest.mark.parametrize("at_once", [1, 2000, 1 << 17])
@pytest.mark.parametrize("count", [1, 9, 40])
def test_blocks_of_any_size_match_like_torchvision(monkeypatch, at_once, count):
    monkeypatch.setattr(detectors.boxes, "_AT_ONCE_ON_CPU", at_once)
    anchors, boxes, valid = scene(count)
    match, overlap = match_anchors(anchors, boxes, valid)
    for b in range(len(boxes)):
        number = valid[b].nonzero().flatten()
        if not len(number):
            assert (match[b] == Matcher.BELOW_LOW_THRESHOLD).all()
            continue
        iou = box_iou(boxes[b, number], anchors)
        expected = Matcher(0.5, 0.4, allow_low_quality_matches=True)(iou)
        assert torch.equal(match[b], torch.where(expected >= 0, number[expected.clamp(min=0)], expected))
        assert torch.equal(overlap[b], iou.amax(0))


@pytest.mark.parametrize("at_once", [1, 1 << 17])
def test_blocks_of_any_size_find_the_anchors_in_ignored_regions(monkeypatch, at_once):
    monkeypatch.setattr(detectors.boxes, "_AT_ONCE_ON_CPU", at_once)
    anchors, boxes, ignored = scene(12, seed=1)
    table = pairwise_intersection(boxes, anchors.expand(2, -1, -1)) / box_area(anchors)
    expected = ((table > 0.5) & ignored.unsqueeze(-1)).any(1)
    assert 0 < expected.sum() < expected.numel()
    assert torch.equal(anchors_in_ignored(anchors, boxes, ignored), expected)
    points = torch.cat([torch.zeros(1, 2), (anchors[:, :2] + anchors[:, 2:]) / 2])
    low, high = boxes[:, :, None, :2], boxes[:, :, None, 2:]
    inside = ((points >= low) & (points <= high)).all(-1) & ignored.unsqueeze(-1)
    assert torch.equal(cells_inside(boxes, ignored, points), inside.any(1))


def test_blocks_on_an_accelerator_have_some_objects_of_every_image(monkeypatch):
    monkeypatch.setattr(detectors.boxes, "_AT_ONCE", 2 * 100 * 4)
    boxes = torch.zeros(2, 10, 4, device="meta")
    blocks = list(blocks_of_objects(boxes, torch.zeros(2, 10, dtype=torch.bool, device="meta"), 100))
    assert [first for _, first, _ in blocks] == [0, 4, 8]
    assert [tuple(block.shape) for _, _, block in blocks] == [(2, 4, 4), (2, 4, 4), (2, 2, 4)]
    assert all(boxes[images].shape == boxes.shape for images, _, _ in blocks)


def test_memory_of_matching_does_not_grow_with_the_number_of_objects():
    small, large = scene(20, side=64), scene(300, side=64)
    few = peak_bytes(lambda: match_anchors(*small))
    many = peak_bytes(lambda: match_anchors(*large))
    assert many < 1.1 * few
    # A table of all pairs would contain 2 x 300 x 12,288 float32 numbers.
    assert many < 2 * 300 * 12_288 * 4 / 5
