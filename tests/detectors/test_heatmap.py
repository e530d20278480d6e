"""Gaussian targets compared with a slow drawing loop and the published radii; peaks compared with brute force."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.contract import Targets
from detectors.heatmap import gaussian_radius, heatmap_targets, keep_peaks, point_cells, top_peaks

# height, width, overlap, corrected radius, legacy radius: computed from the three quadratic equations
RADII = [
    (4, 4, 0.3, 0.905, 1.982),
    (10, 10, 0.5, 1.464, 4.142),
    (20, 20, 0.7, 1.633, 5.466),
    (40, 20, 0.3, 5.780, 13.559),
    (64, 64, 0.5, 9.373, 26.510),
    (128, 16, 0.7, 2.201, 8.200),
]


@pytest.mark.parametrize(("height", "width", "overlap", "fixed", "legacy"), RADII)
def test_gaussian_radius_equals_the_quadratic_equations(height, width, overlap, fixed, legacy):
    h, w = torch.tensor(float(height)), torch.tensor(float(width))
    assert gaussian_radius(h, w, overlap).item() == pytest.approx(fixed, abs=6e-4)
    assert gaussian_radius(h, w, overlap, legacy=True).item() == pytest.approx(legacy, abs=6e-4)


@given(h=st.floats(1, 200), w=st.floats(1, 200), overlap=st.floats(0.1, 0.9))
@settings(max_examples=50, deadline=None)
def test_radius_keeps_the_overlap_for_all_three_displacements(h, w, overlap):
    r = gaussian_radius(
        torch.tensor(h, dtype=torch.float64), torch.tensor(w, dtype=torch.float64), overlap
    ).item()
    area = h * w
    shifted = (h - r) * (w - r) / (2 * area - (h - r) * (w - r))
    inwards = (h - 2 * r) * (w - 2 * r) / area
    outwards = area / ((h + 2 * r) * (w + 2 * r))
    assert min(shifted, inwards, outwards) == pytest.approx(overlap, abs=1e-6)


def random_scene(seed: int, batch: int, count: int, classes: int, size: int) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, count, 2, generator=generator) * (size - 34)
    boxes = torch.cat([corner, corner + 4 + torch.rand(batch, count, 2, generator=generator) * 30], -1)
    labels = torch.randint(-1, classes, (batch, count), generator=generator)
    ignored = torch.rand(batch, count, generator=generator) < 0.15
    return Targets(boxes, labels, ignored, torch.full((batch, 2), size))


def draw_slowly(
    targets: Targets, points, classes: int, height: int, width: int, stride: int, *form
) -> torch.Tensor:
    """Draw a Gaussian around the points (B, M, 2) cell by cell with Python loops: (B, H, W, C); ``form`` is that of the radius."""
    heat = torch.zeros(len(targets.labels), height, width, classes)
    for b, m in targets.valid.nonzero().tolist():
        x1, y1, x2, y2 = targets.boxes[b, m].tolist()
        cx, cy = (int(value / stride) for value in points[b, m].tolist())
        cx, cy = min(cx, width - 1), min(cy, height - 1)
        h, w = math.ceil((y2 - y1) / stride), math.ceil((x2 - x1) / stride)
        r = int(gaussian_radius(torch.tensor(float(h)), torch.tensor(float(w)), *form))
        sigma, label = (2 * r + 1) / 6, targets.labels[b, m]
        for y in range(max(0, cy - r), min(height, cy + r + 1)):
            for x in range(max(0, cx - r), min(width, cx + r + 1)):
                value = math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
                heat[b, y, x, label] = max(heat[b, y, x, label].item(), value)
    return heat


@pytest.mark.parametrize("form", [(0.3, False), (0.5, False), (0.7, True)])
@pytest.mark.parametrize("seed", range(2))
def test_heatmap_targets_equal_the_drawing_loop(seed, form):
    """Radii of 0 to 12 cells, at the centres and at the lower right corners of objects that reach the border."""
    classes, height, width, stride = 3, 32, 48, 2
    targets = random_scene(seed, 2, 9, classes, 64)
    targets.boxes[:, :3] = torch.tensor([[4.0, 2, 96, 64], [60, 20, 96, 50], [10, 4, 50, 64]])
    points = torch.stack([(targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2, targets.boxes[..., 2:]])
    found = heatmap_targets(
        point_cells(points, stride, height, width), targets.boxes, targets, num_classes=classes,
        height=height, width=width, stride=stride, min_overlap=form[0], legacy_radius=form[1],
    )  # fmt: skip
    for target, of_map in zip(found, points, strict=True):
        heat = draw_slowly(targets, of_map, classes, height, width, stride, *form).flatten()
        assert sorted(target.positive.tolist()) == (heat == 1).nonzero().flatten().tolist()
        assert target.negative_index.unique().numel() == target.negative_index.numel()
        drawn = torch.ones_like(heat)
        drawn[target.negative_index] = target.negative_scale
        expected = torch.where(heat == 1, torch.ones_like(heat), (1 - heat) ** 4)
        torch.testing.assert_close(drawn, expected, atol=1e-6, rtol=1e-5)


def test_cells_of_ignored_regions_are_ignored():
    targets = Targets(
        torch.tensor([[[8.0, 8.0, 24.0, 24.0]], [[10.0, 0.0, 14.0, 4.0]], [[0.0, 0.0, 32.0, 32.0]]]),
        torch.tensor([[0], [0], [-1]]),
        torch.tensor([[True], [True], [True]]),
        torch.tensor([[32, 48]] * 3),
    )
    cells = torch.zeros(1, 3, 1, 2, dtype=torch.long)
    (target,) = heatmap_targets(cells, targets.boxes, targets, num_classes=1, height=8, width=12, stride=4)
    inside = target.ignored.view(3, 8, 12)
    assert inside[0, 2:6, 2:6].all() and inside[0].sum() == 16
    # The centres of two cells are on the sides of the second region.
    assert inside[1].nonzero().tolist() == [[0, 2], [0, 3]]
    assert not inside[2].any()
    assert target.positive.numel() == 0


@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (1, 1, 1, 5), (1, 2, 4, 1)])
def test_peaks_equal_those_of_a_max_pooling(shape):
    """There are few different values, so many neighbours are equal."""
    heat = torch.randint(4, shape, generator=torch.Generator().manual_seed(1)) / 4
    expected = heat * (F.max_pool2d(heat, 3, stride=1, padding=1) == heat)
    assert torch.equal(keep_peaks(heat), expected)


def test_top_peaks_equal_brute_force():
    heat = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    scores, labels, cells = top_peaks(keep_peaks(heat), 5)
    for b in range(2):
        found = []
        for c in range(3):
            for y in range(7):
                for x in range(9):
                    around = heat[b, c, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
                    if heat[b, c, y, x] == around.max():
                        found.append((heat[b, c, y, x].item(), c, x, y))
        expected = sorted(found, reverse=True)[:5]
        got = [
            (s.item(), c.item(), *xy.tolist())
            for s, c, xy in zip(scores[b], labels[b], cells[b], strict=True)
        ]
        assert got == expected
