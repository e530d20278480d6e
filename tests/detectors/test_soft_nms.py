"""Batched soft-NMS compared with the algorithm for one class of one image."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.soft_nms import as_detections, soft_nms, soft_suppress
from tests.detectors.keypoint_cases import iou_by_hand


def suppressed_class(boxes, scores, sigma, min_score):
    """Final scores {position: score} of one class of one image, kept to the end (Bodla et al., figure 2)."""
    left = {i: s for i, s in enumerate(scores) if s >= min_score}
    kept = {}
    while left:
        best = max(left, key=left.get)
        kept[best] = left.pop(best)
        left = {i: s * math.exp(-(iou_by_hand(boxes[i], boxes[best]) ** 2) / sigma) for i, s in left.items()}
        left = {i: s for i, s in left.items() if s >= min_score}
    return kept


def random_boxes(generator, *shape):
    corner = torch.rand(*shape, 2, generator=generator) * 40
    return torch.cat([corner, corner + 5 + torch.rand(*shape, 2, generator=generator) * 30], -1)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000), count=st.integers(1, 25), classes=st.integers(1, 4), limit=st.integers(1, 30)
)
def test_soft_nms_equals_the_algorithm_for_each_class(seed, count, classes, limit):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(generator, 3, count)
    scores = torch.rand(3, count, generator=generator)
    labels = torch.randint(classes, (3, count), generator=generator)
    found, index = soft_nms(boxes, scores, labels, limit=limit, sigma=0.3, min_score=0.05)
    assert found.shape == index.shape == (3, min(limit, count))
    for b in range(3):
        expected = []
        for c in range(classes):
            own = (labels[b] == c).nonzero().flatten().tolist()
            kept = suppressed_class(boxes[b, own].tolist(), scores[b, own].tolist(), 0.3, 0.05)
            expected += [(score, own[i]) for i, score in kept.items()]
        expected = sorted(expected, reverse=True)[:limit]
        real = found[b] > 0
        assert index[b][real].tolist() == [i for _, i in expected]
        torch.testing.assert_close(found[b][real], torch.tensor([s for s, _ in expected]))


def test_identical_box_is_lowered_by_the_gaussian_at_one():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]]])
    scores, index = soft_nms(
        boxes, torch.tensor([[0.9, 0.8, 0.5]]), torch.zeros(1, 3, dtype=torch.int64), limit=3
    )
    assert index.tolist() == [[0, 2, 1]]
    torch.testing.assert_close(scores, torch.tensor([[0.9, 0.5, 0.8 * math.exp(-2)]]))


def test_boxes_are_clipped_to_their_image_and_empty_ones_dropped():
    boxes = torch.tensor([[[-5.0, -5, 30, 10], [22, 0, 40, 10]]] * 2)
    scores = torch.tensor([[0.9, 0.8]] * 2)
    labels = torch.tensor([[0, 1]] * 2)
    sizes = torch.tensor([[8, 20], [32, 32]])
    found = as_detections(*soft_suppress(boxes, scores, labels, sizes, limit=10, sigma=0.5))
    # The second box is outside the first image, which is 20 pixels wide.
    assert found[0].boxes.tolist() == [[0, 0, 20, 8]]
    assert found[1].boxes.tolist() == [[0, 0, 30, 10], [22, 0, 32, 10]]
    assert [d.labels.tolist() for d in found] == [[0], [0, 1]]


def test_padding_and_empty_input_give_no_detections():
    empty = as_detections(
        *soft_suppress(
            torch.zeros(2, 0, 4),
            torch.zeros(2, 0),
            torch.zeros(2, 0, dtype=torch.int64),
            torch.full((2, 2), 32),
            limit=5,
            sigma=0.5,
        )
    )
    assert [len(d.scores) for d in empty] == [0, 0]
    padded = as_detections(
        *soft_suppress(
            torch.tensor([[[0.0, 0, 4, 4], [1, 1, 9, 9]]]),
            torch.tensor([[0.0, 0.7]]),
            torch.zeros(1, 2).long(),
            torch.full((1, 2), 32),
            limit=5,
            sigma=0.5,
        )
    )
    assert padded[0].boxes.tolist() == [[1, 1, 9, 9]]
