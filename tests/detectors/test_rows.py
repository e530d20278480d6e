"""Rows at positions compared with plain indexing in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from afl.losses import ClassificationLoss
from detectors.backbone import TinyBackbone
from detectors.boxes import aligned_giou
from detectors.contract import ClassCounts, weighted_sum
from detectors.fcos import FCOS
from detectors.heatmap import gather_cells
from detectors.objectbox import ObjectBox
from detectors.retinanet import RetinaNet
from detectors.rows import rows_at
from tests.detectors.test_objectbox import random_targets


def values_and_gradient(shape, count, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
    return values, torch.randn(count, *shape[1:], generator=generator, dtype=dtype), generator


@pytest.mark.parametrize("shape", [(50,), (50, 4), (2000, 3)])
@pytest.mark.parametrize("distinct", [True, False])
def test_rows_and_their_gradient_equal_plain_indexing(shape, distinct):
    values, upstream, generator = values_and_gradient(shape, 40, 0)
    position = (
        torch.randperm(shape[0], generator=generator)[:40]
        if distinct
        else torch.randint(10, (40,), generator=generator)
    )
    rows_at(values, position, distinct=distinct).backward(upstream)
    expected = values.detach().requires_grad_()
    expected[position].backward(upstream)
    torch.testing.assert_close(values.grad, expected.grad, rtol=0, atol=0)


@pytest.mark.parametrize("distinct", [True, False])
def test_padding_gives_a_row_and_no_gradient(distinct):
    values, upstream, _ = values_and_gradient((5, 4), 3000, 1)
    position = torch.full((3000,), -1)
    position[:3] = torch.tensor([4, 0, 2])
    rows = rows_at(values, position, distinct=distinct)
    assert torch.equal(rows[3:], values[:1].expand(2997, -1))
    upstream[3:] = torch.inf
    rows.backward(upstream)
    expected = torch.zeros(5, 4, dtype=torch.float64)
    expected[[4, 0, 2]] = upstream[:3]
    assert torch.equal(values.grad, expected)


def test_gradients_of_one_row_are_summed_in_float32():
    # In bfloat16, 256 + 1 is 256, so adding the gradients one by one would lose all but the first.
    values = torch.zeros(2, 3, dtype=torch.bfloat16, requires_grad=True)
    rows = rows_at(values, torch.tensor([1] * 257), distinct=False)
    assert rows.dtype == torch.float32
    upstream = torch.ones(257, 3)
    upstream[0] = 256
    rows.backward(upstream)
    assert values.grad.dtype == torch.bfloat16
    assert values.grad.tolist() == [[0.0] * 3, [512.0] * 3]


def test_gradients_of_one_cell_of_a_map_are_summed_in_float32():
    features = torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    found = gather_cells(features, torch.tensor([[[1, 0]] * 257]))
    upstream = torch.ones(1, 257, 1)
    upstream[0, 0] = 256
    found.backward(upstream)
    assert features.grad.flatten().tolist() == [0.0, 512.0, 0.0, 0.0]


class SummedPositions(TorchDispatchMode):
    """Records the positions at which the backward pass of indexing sums values."""

    def __init__(self):
        super().__init__()
        self.positions = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function._schema.name in ("aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
            if len(arguments) > 3 and arguments[3]:
                self.positions += [index.flatten() for index in arguments[1]]
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("kind", [RetinaNet, FCOS, ObjectBox])
def test_backward_pass_of_a_padded_batch_sums_few_entries_per_position(monkeypatch, kind):
    for name in ("dense", "objectbox"):
        monkeypatch.setattr(
            f"detectors.{name}.nonzero_padded",
            lambda mask, size: torch.nonzero_static(
                mask, size=min(size, mask.numel()), fill_value=-1
            ).flatten(),
        )
    detector = kind(
        backbone=TinyBackbone(widths=(8, 8, 8, 8)),
        classes=ClassCounts(torch.ones(3), torch.ones(3)),
        loss=ClassificationLoss,
        strides=(4, 8, 16),
        channels=8,
        tower_depth=1,
    )
    targets = random_targets(0, 3, 2, 0)
    total = weighted_sum(detector.losses(detector(torch.randn(3, 3, 96, 96)), targets), detector.loss_weights)
    with SummedPositions() as added:
        total.backward()
    assert all(position.bincount().max() <= 16 for position in added.positions)


def test_box_loss_of_fcos_has_the_gradient_of_plain_indexing():
    detector = FCOS(
        backbone=TinyBackbone(widths=(8, 8, 8, 8)),
        classes=ClassCounts(torch.ones(3), torch.ones(3)),
        loss=ClassificationLoss,
        strides=(4, 8, 16),
        channels=8,
        tower_depth=1,
    )
    targets = random_targets(1, 4, 2)
    outputs = {name: value.detach() for name, value in detector(torch.randn(2, 3, 96, 96)).items()}
    distances = outputs["distances"].requires_grad_()
    detector.losses(outputs, targets)["box"].backward()
    _, positives = detector.assign(outputs, targets)
    location, boxes = positives.location, positives.boxes
    plain = distances.detach().double().requires_grad_()
    cell = location % outputs["points"].shape[0]
    reach = plain.flatten(0, 1)[location].relu() * outputs["strides"][cell].unsqueeze(1)
    points = outputs["points"][cell]
    found = torch.cat([points - reach[:, :2], points + reach[:, 2:]], 1)
    ((1 - aligned_giou(found, boxes.double())).sum() / len(location)).backward()
    torch.testing.assert_close(distances.grad.double(), plain.grad, rtol=1e-4, atol=1e-7)
