"""Box geometry compared with torchvision, and the functions that torchvision lacks."""

import torch
from torchvision.ops import box_iou, complete_box_iou, generalized_box_iou

from afl.losses.sampling import nonzero_padded
from detectors.boxes import aligned_giou, aligned_iou, cells_inside, clip_boxes, masked_sum, pairwise_iou


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 80
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 40 + 0.5], 1)


def test_pairwise_iou_equals_torchvision():
    a, b = random_boxes(40, 0), random_boxes(30, 1)
    torch.testing.assert_close(pairwise_iou(a, b), box_iou(a, b))


def test_aligned_iou_and_giou_equal_torchvision():
    a, b = random_boxes(50, 2), random_boxes(50, 3)
    torch.testing.assert_close(aligned_iou(a, b), box_iou(a, b).diagonal())
    torch.testing.assert_close(aligned_giou(a, b), generalized_box_iou(a, b).diagonal())
    assert not torch.allclose(aligned_giou(a, b), complete_box_iou(a, b).diagonal())


def test_degenerate_boxes_give_finite_overlaps():
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert torch.isfinite(aligned_giou(point, point)).all()
    assert pairwise_iou(point, random_boxes(3, 0)).eq(0).all()


def test_clip_boxes_limits_boxes_to_height_and_width():
    boxes = torch.tensor([[-5.0, -5.0, 200.0, 300.0]])
    assert clip_boxes(boxes, torch.tensor([60, 90])).tolist() == [[0.0, 0.0, 90.0, 60.0]]


def test_masked_sum_ignores_nan_outside_the_mask():
    values = torch.tensor([1.0, float("nan"), 3.0], requires_grad=True)
    total = masked_sum(values, torch.tensor([True, False, True]))
    total.backward()
    assert total.item() == 4.0
    assert values.grad.tolist() == [1.0, 0.0, 1.0]


def test_nonzero_padded_equals_nonzero_on_a_cpu():
    mask = torch.tensor([False, True, True, False])
    assert nonzero_padded(mask, 4).tolist() == [1, 2]


def test_cells_inside_counts_only_masked_boxes():
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]]])
    points = torch.tensor([[5.0, 5.0], [25.0, 25.0], [15.0, 15.0]])
    assert cells_inside(boxes, torch.tensor([[True, False]]), points).tolist() == [[True, False, False]]
