"""ExtremeNet: edge aggregation, grouping and ghosts against the paper's rules tried one by one, targets and losses
against equations written out, and ground truth through targets and decoding back to ground truth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import generate_shapes, read_coco, read_shapes
from detectors import extreme_grouping
from detectors.boxes import pairwise_iou
from detectors.contract import Targets, weighted_sum
from detectors.extreme_grouping import aggregate_edges, group_extremes, suppress_ghosts
from detectors.extremenet import EXTREMES, MAPS, ExtremeNet
from detectors.heatmap import gaussian_radius
from tests.detectors.cases import small_network
from tests.detectors.keypoint_cases import (
    assert_all_found,
    assert_same_detections,
    average_precision,
    clipped_by_hand,
    crowded_targets,
    gaussian_by_hand,
    images_of,
    peaks_by_hand,
    penalty_reduced_loss,
    perfect_logits,
    points_on_sides,
    put_at_cells,
    random_targets,
    soft_nms_by_hand,
)

STRIDE = 4
THRESHOLD = 0.1


def random_outputs(seed: int, batch: int, classes: int, height: int, width: int, dtype=torch.float32) -> dict:
    generator = torch.Generator().manual_seed(seed)
    outputs = {name: torch.randn(batch, classes, height, width, generator=generator) for name in MAPS}
    for name in EXTREMES:
        outputs[f"{name}_offset"] = torch.rand(batch, 2, height, width, generator=generator)
    return {name: value.to(dtype) for name, value in outputs.items()}


def all_quadruples(
    scores: np.ndarray, labels: np.ndarray, cells: np.ndarray, center: np.ndarray
) -> np.ndarray:
    """Enumerate all quadruples of the (4, K) peaks of one image, and keep those that pass every test.

    Returns:
        (n, 5) score, then the positions of top, left, bottom and right.
    """
    count = scores.shape[1]
    top, left, bottom, right = np.ix_(*[range(count)] * 4)
    chosen = tuple(enumerate((top, left, bottom, right)))
    (tx, ty), (lx, ly), (bx, by), (rx, ry) = (cells[i, k].transpose(4, 0, 1, 2, 3) for i, k in chosen)
    fits = (ty <= ly) & (ty <= by) & (ty <= ry) & (lx <= tx) & (lx <= bx) & (lx <= rx)
    fits = fits & (by >= ly) & (by >= ry) & (rx >= tx) & (rx >= bx)
    middle = center[labels[0, top], (ty + by) // 2, (lx + rx) // 2]
    fits, total = fits & (middle >= THRESHOLD), 2 * middle
    for i, k in chosen:
        fits = fits & (labels[i, k] == labels[0, top]) & (scores[i, k] >= THRESHOLD)
        total = total + scores[i, k]
    kept = np.argwhere(fits)
    return np.concatenate([total[fits][:, None] / 6, kept], 1)


class TestEdgeAggregation:
    def test_example(self):
        row = torch.tensor([[[[0.1, 0.3, 0.5, 0.4, 0.2]]]])
        torch.testing.assert_close(
            aggregate_edges(row, -1, 0.1), torch.tensor([[[[0.1, 0.31, 0.60, 0.42, 0.2]]]])
        )

    @settings(deadline=None, max_examples=40)
    @given(
        st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]), min_size=1, max_size=12),
        st.sampled_from([-1, -2]),
    )
    def test_aggregation_equals_a_walk_along_both_sides(self, values, dim):
        expected = []
        for i, value in enumerate(values):
            for step in (-1, 1):
                j = i + step
                while 0 <= j < len(values) and values[j] <= values[j - step]:
                    value += 0.1 * values[j]
                    j += step
            expected.append(value)
        heat = torch.tensor(values).view((1, 1, 1, -1) if dim == -1 else (1, 1, -1, 1))
        torch.testing.assert_close(aggregate_edges(heat, dim, 0.1).flatten(), torch.tensor(expected))

    @pytest.mark.parametrize("dim", [-1, -2])
    def test_scores_above_the_floor_do_not_depend_on_it(self, dim):
        generator = torch.Generator().manual_seed(0)
        heat = torch.rand(2, 5, 9, 11, generator=generator) * torch.tensor([0.5, 0.1, 0.06, 0.04, 0.01]).view(
            5, 1, 1
        )
        whole, short = aggregate_edges(heat, dim, 0.1), aggregate_edges(heat, dim, 0.1, floor=0.1)
        assert torch.equal(whole[whole >= 0.1], short[whole >= 0.1])
        assert (short[whole < 0.1] < 0.1).all() and torch.equal(short[:, 4], heat[:, 4])


class TestGrouping:
    @staticmethod
    def peaks(seed: int, batch: int, count: int, classes: int, side: int, share: float):
        """Random peaks, some of them below the threshold, and a centre map that is partly above it."""
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(batch, 4, count, generator=generator)
        labels = torch.randint(classes, (batch, 4, count), generator=generator)
        cells = torch.randint(side, (batch, 4, count, 2), generator=generator)
        center = torch.rand(batch, classes, side, side, generator=generator)
        center = center * (torch.rand(center.shape, generator=generator) < share)
        return scores, labels, cells, center

    @staticmethod
    def assert_equal_to_enumeration(found, scores, labels, cells, center, limit):
        for b in range(len(scores)):
            expected = all_quadruples(*(x[b].numpy() for x in (scores, labels, cells, center)))
            expected = expected[np.argsort(-expected[:, 0], kind="stable")][:limit]
            count = int((found.scores[b] > 0).sum())
            assert count == len(expected)
            np.testing.assert_allclose(found.scores[b, :count], expected[:, 0], rtol=1e-5)
            quadruples = found.points[b, :count].tolist()
            if limit > count:
                assert {tuple(q) for q in quadruples} == {
                    tuple(q) for q in expected[:, 1:].astype(int).tolist()
                }
            for side in range(4):
                assert torch.equal(labels[b, side, found.points[b, :count, side]], found.labels[b, :count])

    @settings(deadline=None, max_examples=25)
    @given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 4), st.integers(1, 10), st.floats(0, 1))
    def test_grouping_equals_enumeration_on_small_maps(self, seed, count, classes, side, share):
        case = self.peaks(seed, 3, count, classes, side, share)
        found = group_extremes(*case, threshold=THRESHOLD, limit=100_000)
        self.assert_equal_to_enumeration(found, *case, limit=100_000)

    def test_the_best_groups_are_kept_for_any_size_of_block(self, monkeypatch):
        case = self.peaks(0, 2, 12, 1, 12, 0.8)
        whole = group_extremes(*case, threshold=THRESHOLD, limit=50)
        self.assert_equal_to_enumeration(whole, *case, limit=50)
        monkeypatch.setattr(extreme_grouping, "_AT_ONCE", 97)
        assert whole.candidates > 10 * 97
        assert torch.equal(group_extremes(*case, threshold=THRESHOLD, limit=50).points, whole.points)

    @pytest.mark.parametrize("classes", [1, 10])
    def test_grouping_examines_a_hundred_times_fewer_candidates_than_enumeration(self, classes):
        # The worst case: forty objects of one class, as many as the peaks of a map.
        targets = random_targets(classes, batch=1, count=40, num_classes=classes, size=512)
        network = small_network(ExtremeNet, classes)
        maps, cells, _ = network.assign({"center": torch.empty(1, classes, 128, 128)}, targets)
        center = perfect_logits(maps["center"], 128, 128).sigmoid()
        scores = 0.2 + 0.8 * torch.rand(1, 4, 40, generator=torch.Generator().manual_seed(0))
        case = scores, targets.labels.unsqueeze(1).expand(-1, 4, -1), cells.transpose(1, 2), center
        found = group_extremes(*case, threshold=THRESHOLD, limit=1000)
        assert found.candidates <= 40**4 / 100
        self.assert_equal_to_enumeration(found, *case, limit=1000)

    def test_no_peak_above_the_threshold_gives_no_groups(self):
        scores, labels, cells, center = self.peaks(0, 2, 5, 2, 8, 1.0)
        for case in ((scores * 0.09, center), (scores, center * 0.09)):
            found = group_extremes(case[0], labels, cells, case[1], threshold=THRESHOLD, limit=10)
            assert found.scores.shape == (2, 0) and found.points.shape == (2, 0, 4)


class TestGhosts:
    def test_a_box_around_three_boxes_is_a_ghost(self):
        boxes = torch.tensor([[[0.0, 0, 30, 10], [0, 0, 8, 8], [11, 1, 19, 9], [22, 2, 30, 10]]])
        scores = torch.tensor([[0.35, 0.3, 0.3, 0.3]])
        same, other = torch.zeros(1, 4).long(), torch.tensor([[0, 0, 0, 1]])
        # 0.35 + 0.9 = 1.25 exceeds 3 x 0.35; the sum without the third box does not.
        torch.testing.assert_close(
            suppress_ghosts(boxes, scores, same), torch.tensor([[0.175, 0.3, 0.3, 0.3]])
        )
        assert torch.equal(suppress_ghosts(boxes, scores, other), scores)
        # Scores up to 0.2 are not changed.
        assert torch.equal(suppress_ghosts(boxes, scores / 2, same), scores / 2)

    @settings(deadline=None, max_examples=25)
    @given(st.integers(0, 10_000))
    def test_ghost_suppression_equals_a_loop_over_boxes(self, seed):
        generator = torch.Generator().manual_seed(seed)
        corner = torch.randint(6, (2, 20, 2), generator=generator)
        boxes = torch.cat([corner, corner + torch.randint(1, 6, (2, 20, 2), generator=generator)], -1).float()
        scores = torch.rand(2, 20, generator=generator)
        labels = torch.randint(2, (2, 20), generator=generator)
        expected = scores.clone()
        for b in range(2):
            for i in range(20):
                x1, y1, x2, y2 = boxes[b, i].tolist()
                inner = 0.0
                for j in range(20):
                    u1, v1, u2, v2 = boxes[b, j].tolist()
                    if labels[b, i] == labels[b, j] and u1 >= x1 and v1 >= y1 and u2 <= x2 and v2 <= y2:
                        inner += scores[b, j].item()
                if scores[b, i] > 0.2 and inner > 3 * scores[b, i].item():
                    expected[b, i] /= 2
        torch.testing.assert_close(suppress_ghosts(boxes, scores, labels), expected)


class TestLosses:
    def test_heat_map_losses_equal_the_papers_formula(self):
        targets = random_targets(0, batch=2, count=5, num_classes=3)
        outputs = random_outputs(1, 2, 3, 16, 16)
        losses = small_network(ExtremeNet, 3).losses(outputs, targets)
        heats = {name: [] for name in MAPS}
        for b in range(2):
            drawn = {name: [] for name in MAPS}
            for k, (x1, y1, x2, y2) in enumerate(targets.boxes[b].tolist()):
                size = [torch.tensor(float(math.ceil(side / STRIDE))) for side in (y2 - y1, x2 - x1)]
                radius, label = int(gaussian_radius(*size)), int(targets.labels[b, k])
                at = [
                    (min(int(y // 4), 15), min(int(x // 4), 15))
                    for x, y in targets.extreme_points[b, k].tolist()
                ]
                (top, _), (_, left), (bottom, _), (_, right) = at
                for name, (row, column) in zip(
                    MAPS, [*at, ((top + bottom) // 2, (left + right) // 2)], strict=True
                ):
                    drawn[name].append((label, row, column, radius))
            for name in MAPS:
                heats[name].append(gaussian_by_hand((3, 16, 16), drawn[name]))
        for name in MAPS:
            expected = penalty_reduced_loss(outputs[name].numpy(), np.stack(heats[name]))
            assert losses[name].item() == pytest.approx(expected, rel=1e-4)

    def test_offsets_equal_a_sum_over_points(self):
        targets = random_targets(2, batch=2, count=3, num_classes=3)
        outputs = random_outputs(3, 2, 3, 16, 16)
        total = 0.0
        for b in range(2):
            for k in range(3):
                for name, xy in zip(EXTREMES, targets.extreme_points[b, k].tolist(), strict=True):
                    cell = [min(int(v // STRIDE), 15) for v in xy]
                    for axis in (0, 1):
                        d = abs(
                            outputs[f"{name}_offset"][b, axis, cell[1], cell[0]].item()
                            - (xy[axis] / STRIDE - cell[axis])
                        )
                        total += 0.5 * d * d if d < 1 else d - 0.5
        losses = small_network(ExtremeNet, 3).losses(outputs, targets)
        assert losses["offset"].item() == pytest.approx(total / 6, rel=1e-5)

    def test_objects_without_extreme_points_are_ignored(self):
        targets = random_targets(4, batch=1, count=3, num_classes=2)
        boxes = torch.tensor([[[2.0, 2, 20, 20], [32, 32, 48, 64], [32, 0, 64, 8]]])
        points = points_on_sides(boxes, torch.Generator().manual_seed(0))
        points[0, 1, 2] = math.nan  # one unknown point is enough
        points[0, 2] = math.nan
        targets = replace(targets, boxes=boxes, extreme_points=points)
        network = small_network(ExtremeNet, 2)
        outputs = {k: v.requires_grad_() for k, v in random_outputs(5, 1, 2, 16, 16).items()}
        losses = network.losses(outputs, targets)
        weighted_sum(losses, {}).backward()
        maps, _, learnt = network.assign(outputs, targets)
        assert learnt.tolist() == [[True, False, False]]
        for name in MAPS:
            assert maps[name].num_positives() == 1
            still = torch.zeros(16, 16, dtype=torch.bool)
            still[8:16, 8:12] = still[0:2, 8:16] = True
            assert torch.equal(outputs[name].grad[0].abs().sum(0) == 0, still)
        only = Targets(
            boxes[:, :1], targets.labels[:, :1], targets.ignored[:, :1], targets.image_sizes, points[:, :1]
        )
        assert losses["offset"] == network.losses(outputs, only)["offset"]
        assert all(torch.isfinite(value.grad).all() for value in outputs.values())

    def test_more_than_128_objects_are_all_positives(self):
        targets = random_targets(6, batch=1, count=300, num_classes=4, size=128)
        network = small_network(ExtremeNet, 4)
        outputs = random_outputs(7, 1, 4, 32, 32)
        maps, cells, learnt = network.assign(outputs, targets)
        assert learnt.all()
        for i, name in enumerate(EXTREMES):
            places = zip(targets.labels[0].tolist(), cells[0, :, i].tolist(), strict=True)
            assert maps[name].num_positives() == len({(label, *cell) for label, cell in places}) > 200
        assert all(torch.isfinite(value) for value in network.losses(outputs, targets).values())

    def test_missing_extreme_points_give_an_error_with_a_remedy(self):
        targets = replace(random_targets(0, batch=1, count=2, num_classes=2), extreme_points=None)
        network = small_network(ExtremeNet, 2)
        assert network.needs_extreme_points
        with pytest.raises(ValueError, match="extreme_source.*box_sides"):
            network.losses(random_outputs(0, 1, 2, 16, 16), targets)


def aggregated_by_hand(heat: np.ndarray, rows: bool) -> np.ndarray:
    lines = heat if rows else heat.transpose(0, 2, 1)
    result = lines.copy()
    for c, i, j in np.ndindex(*lines.shape):
        for step in (-1, 1):
            k = j + step
            while 0 <= k < lines.shape[2] and lines[c, i, k] <= lines[c, i, k - step]:
                result[c, i, j] += 0.1 * lines[c, i, k]
                k += step
    return result if rows else result.transpose(0, 2, 1)


def decoded_by_hand(outputs: dict, b: int, size: list[int], network: ExtremeNet) -> list[tuple]:
    """Decode by enumerating all quadruples of the peaks, with a simple suppression (ExtremeNet, 4)."""
    peaks = []
    for name in EXTREMES:
        heat = aggregated_by_hand(outputs[name][b].sigmoid().double().numpy(), rows=name in ("top", "bottom"))
        peaks.append([(min(s, 1.0), c, i, j) for s, c, i, j in peaks_by_hand(heat)][: network.max_points])
    count = min(map(len, peaks))
    assert count == max(map(len, peaks)) == network.max_points
    table = np.array(peaks)
    found = []
    cells = table[:, :, [3, 2]].astype(int)
    center = outputs["center"][b].sigmoid().double().numpy()
    for score, *which in all_quadruples(table[..., 0], table[..., 1].astype(int), cells, center).tolist():
        where = []
        for side, (name, k) in enumerate(zip(EXTREMES, map(int, which), strict=True)):
            column, row = cells[side, k]
            offset = outputs[f"{name}_offset"][b, :, row, column].tolist()
            where.append(((column + offset[0]) * STRIDE, (row + offset[1]) * STRIDE))
        (_, y1), (x1, _), (_, y2), (x2, _) = where
        found.append((score, int(table[0, int(which[0]), 1]), x1, y1, x2, y2))
    found = sorted(found, reverse=True)[: network.max_groups]
    kept = soft_nms_by_hand(clipped_by_hand(found, *size), network.soft_nms_sigma, network.max_detections)
    judged = []
    for entry in kept:
        inner = [
            e[0]
            for e in kept
            if e[1] == entry[1]
            and e[2] >= entry[2]
            and e[3] >= entry[3]
            and e[4] <= entry[4]
            and e[5] <= entry[5]
        ]
        ghost = entry[0] > 0.2 and sum(inner) > 3 * entry[0]
        judged.append((entry[0] / 2 if ghost else entry[0], *entry[1:]))
    return sorted(judged, reverse=True)


class TestDecode:
    @pytest.mark.parametrize(
        "classes, height, width, options",
        [
            (3, 8, 8, {"max_points": 12}),
            (2, 8, 12, {"max_points": 14, "max_groups": 100}),
            (1, 16, 8, {"max_points": 9, "max_detections": 25}),
        ],
    )
    def test_decoding_equals_enumerating_all_quadruples(self, classes, height, width, options):
        network = small_network(ExtremeNet, classes, **options)
        outputs = random_outputs(classes, 2, classes, height, width)
        # Aggregated scores are clamped to 1, and boxes with equal scores have no defined order, so most scores stay below 1.
        outputs |= {name: 0.8 * outputs[name] - 1 for name in MAPS}
        sizes = torch.tensor([[height * STRIDE, width * STRIDE], [height * STRIDE - 9, width * STRIDE - 5]])
        found = network.decode(outputs, sizes)
        for b in range(2):
            expected = decoded_by_hand(outputs, b, sizes[b].tolist(), network)
            assert len(expected) > 10
            assert_same_detections(found[b], expected)


def perfect_outputs(network: ExtremeNet, targets: Targets, height: int, width: int) -> dict:
    """The outputs of a perfect network: Gaussians and exact offsets."""
    height, width = height // STRIDE, width // STRIDE
    maps, cells, learnt = network.assign({"center": torch.empty(1, 1, height, width)}, targets)
    outputs = {name: perfect_logits(maps[name], height, width) for name in MAPS}
    for i, name in enumerate(EXTREMES):
        offset = targets.extreme_points[:, :, i] / STRIDE - cells[:, :, i]
        outputs[f"{name}_offset"] = put_at_cells(cells[:, :, i], offset, learnt, height, width)
    return outputs


def unresolvable(network: ExtremeNet, targets: Targets, outputs: dict) -> set[int]:
    """Positions in the image of objects that even perfect maps do not separate from others.

    Either a point of the object has one of the same kind and class in its own or a neighbouring cell, so that both are not
    peaks; or points of several objects make a box over it, around a centre as certain as its own (three chairs in a row):
    a false box that no score tells from a true one.
    """
    _, cells, learnt = network.assign(outputs, targets)
    center = outputs["center"][0].sigmoid().numpy()
    objects = learnt[0].nonzero().flatten().tolist()
    found = set()
    for label in {int(targets.labels[0, k]) for k in objects}:
        own = np.array([k for k in objects if targets.labels[0, k] == label])
        points = cells[0, own].numpy().transpose(1, 0, 2)
        apart = np.abs(points[:, :, None] - points[:, None]).max(-1) + 99 * np.eye(len(own), dtype=int)
        found |= set(own[(apart <= 1).any((0, 2))].tolist())
        ones = np.ones(points.shape[:2])
        groups = all_quadruples(ones, ones.astype(int) * label, points, center)
        quadruples = groups[groups[:, 0] > 0.99, 1:].astype(int)
        mixed = quadruples[(quadruples != quadruples[:, :1]).any(1)]
        boxes = box_of(targets.extreme_points[0, own])
        overlaps = pairwise_iou(boxes, box_of(targets.extreme_points[0][own[mixed], np.arange(4)])) > 0.1
        found |= set(own[overlaps.any(1).numpy()].tolist())
    return found


def box_of(points: torch.Tensor) -> torch.Tensor:
    """The box (n, 4) xyxy of extreme points (n, 4, 2)."""
    return torch.stack([points[:, 1, 0], points[:, 0, 1], points[:, 3, 0], points[:, 2, 1]], 1)


def round_trip(index) -> tuple[float, float, float]:
    """AP of the boxes of extreme points through targets and decoding: of all objects that have them, of those that are not
    ``unresolvable``, and the share of the latter."""
    truth = index.coco_dict()
    for annotation, box in zip(
        truth["annotations"], box_of(torch.from_numpy(index.extreme_points)), strict=True
    ):
        if box.isfinite().all():
            x1, y1, x2, y2 = box.double().tolist()
            annotation["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        else:
            annotation["iscrowd"] = 1
    found, hard = {}, set()
    for i, targets, classes, (height, width) in images_of(index):
        # The number of peaks that the image with the most objects needs.
        network = small_network(ExtremeNet, len(classes), max_points=100)
        outputs = perfect_outputs(network, targets, height, width)
        decoded = network.decode(outputs, targets.image_sizes)[0]
        found[int(index.image_ids[i])] = replace(decoded, labels=classes[decoded.labels])
        hard |= {index.annotations(i).start + k for k in unresolvable(network, targets, outputs)}
    everything = average_precision(truth, found)
    for a in hard:
        truth["annotations"][a]["iscrowd"] = 1
    return everything, average_precision(truth, found), len(hard) / len(index.boxes)


class TestRoundTrip:
    def test_shapes(self, tmp_path):
        folder = generate_shapes(tmp_path, num_train=20, num_val=60)
        everything, _, _ = round_trip(read_shapes(folder, split="val", annotation_format="coco"))
        assert everything >= 0.99

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_coco_sample(self, shared_data, split):
        folder = shared_data / "coco_sample"
        index = read_coco(folder / "annotations" / f"instances_{split}2017.json", folder / f"{split}2017")
        everything, resolvable, share = round_trip(index)
        assert resolvable >= 0.99
        assert everything >= 0.98 and share < 0.25

    def test_more_than_128_objects_in_one_image_are_decoded(self):
        targets = crowded_targets(num_classes=20)
        network = small_network(ExtremeNet, 20, max_points=200, max_detections=300)
        found = network.decode(perfect_outputs(network, targets, 512, 512), targets.image_sizes)[0]
        assert_all_found(targets, found)
