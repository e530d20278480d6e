"""CornerNet: tags, targets and losses against the paper's equations written out, decoding against all pairs tried one
by one, and ground truth through targets and decoding back to ground truth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import generate_shapes, read_coco, read_shapes, read_voc
from detectors.contract import Targets, weighted_sum
from detectors.corner_pooling import CORNERS
from detectors.cornernet import CornerNet, corner_points, pull_and_push
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
    put_at_cells,
    random_targets,
    soft_nms_by_hand,
)

STRIDE = 4


def random_outputs(seed: int, batch: int, classes: int, height: int, width: int, dtype=torch.float32) -> dict:
    generator = torch.Generator().manual_seed(seed)
    outputs = {}
    for corner in CORNERS:
        outputs[corner] = torch.randn(batch, classes, height, width, generator=generator)
        outputs[f"{corner}_tag"] = torch.randn(batch, 1, height, width, generator=generator)
        outputs[f"{corner}_offset"] = torch.rand(batch, 2, height, width, generator=generator)
    return {name: value.to(dtype) for name, value in outputs.items()}


class TestTags:
    @staticmethod
    def both(first, second, valid):
        pull, push = pull_and_push(torch.tensor([first]), torch.tensor([second]), torch.tensor([valid]))
        return pull.item(), push.item()

    def test_no_object_and_one_object_have_known_values(self):
        assert self.both([1.0, 2.0], [3.0, 5.0], [False, False]) == (0, 0)
        # (1 - 2)^2 + (3 - 2)^2 over one object, and no other object to push away from.
        assert self.both([1.0, 2.0], [3.0, 5.0], [True, False]) == (2, 0)

    def test_two_objects_within_the_margin_push_each_other(self):
        pull, push = self.both([0.0, 0.4], [0.0, 0.4], [True, True])
        assert pull == 0 and push == pytest.approx((0.6 + 0.6) / 2)

    @settings(deadline=None, max_examples=25)
    @given(seed=st.integers(0, 10_000), count=st.integers(0, 9))
    def test_pull_and_push_equal_equations_4_and_5(self, seed, count):
        generator = torch.Generator().manual_seed(seed)
        first, second = torch.randn(2, 3, count, generator=generator, dtype=torch.float64)
        valid = torch.rand(3, count, generator=generator) < 0.6
        pull, push = pull_and_push(first, second, valid)
        for b in range(3):
            objects = [(first[b, k].item(), second[b, k].item()) for k in range(count) if valid[b, k]]
            n, means = len(objects), [(e + f) / 2 for e, f in objects]
            near = [(e - m) ** 2 + (f - m) ** 2 for (e, f), m in zip(objects, means, strict=True)]
            apart = [max(0.0, 1 - abs(means[i] - means[j])) for i in range(n) for j in range(n) if i != j]
            assert pull[b].item() == pytest.approx(sum(near) / n if n else 0)
            assert push[b].item() == pytest.approx(sum(apart) / (n * (n - 1)) if n > 1 else 0)


class TestLosses:
    def test_heat_map_losses_equal_the_papers_formula(self):
        targets = random_targets(0, batch=2, count=5, num_classes=3)
        outputs = random_outputs(1, 2, 3, 16, 16)
        losses = small_network(CornerNet, 3).losses(outputs, targets)
        for corner in CORNERS:
            heat = []
            for b in range(2):
                points = []
                for box, label in zip(targets.boxes[b].tolist(), targets.labels[b].tolist(), strict=True):
                    x, y = box[:2] if corner == "top_left" else box[2:]
                    w, h = (math.ceil((box[k + 2] - box[k]) / STRIDE) for k in (0, 1))
                    radius = int(gaussian_radius(torch.tensor(float(h)), torch.tensor(float(w))))
                    points.append((label, min(int(y // STRIDE), 15), min(int(x // STRIDE), 15), radius))
                heat.append(gaussian_by_hand((3, 16, 16), points))
            expected = penalty_reduced_loss(outputs[corner].numpy(), np.stack(heat))
            assert losses[corner].item() == pytest.approx(expected, rel=1e-4)

    def test_initial_loss_without_objects_follows_from_the_prior(self):
        # Every element is a negative with p = 0.1 and has the loss p^2 (-ln(1 - p)); the normaliser is 1.
        network = small_network(CornerNet, 5)
        targets = random_targets(0, batch=1, count=0, num_classes=5)
        outputs = random_outputs(0, 1, 5, 16, 16) | {
            c: torch.full((1, 5, 16, 16), -math.log(9)) for c in CORNERS
        }
        losses = network.losses(outputs, targets)
        for corner in CORNERS:
            assert losses[corner].item() == pytest.approx(5 * 16 * 16 * 0.01 * -math.log(0.9), rel=1e-5)

    def test_offsets_equal_a_sum_over_corners(self):
        targets = random_targets(2, batch=2, count=4, num_classes=3)
        targets = replace(targets, ignored=torch.tensor([[False, True, False, False], [False] * 4]))
        outputs = random_outputs(3, 2, 3, 16, 16)
        total = 0.0
        for b in range(2):
            for k in range(4):
                if targets.ignored[b, k]:
                    continue
                for corner, xy in (
                    ("top_left", targets.boxes[b, k, :2]),
                    ("bottom_right", targets.boxes[b, k, 2:]),
                ):
                    for axis, value in enumerate(xy.tolist()):
                        column, row = (min(int(v // STRIDE), 15) for v in xy.tolist())
                        d = abs(
                            outputs[f"{corner}_offset"][b, axis, row, column].item()
                            - (value / STRIDE - (column, row)[axis])
                        )
                        total += 0.5 * d * d if d < 1 else d - 0.5
        losses = small_network(CornerNet, 3).losses(outputs, targets)
        assert losses["offset"].item() == pytest.approx(total / 7, rel=1e-5)

    def test_tags_are_averaged_over_images_with_objects(self):
        targets = random_targets(4, batch=3, count=3, num_classes=2)
        targets = replace(targets, labels=torch.tensor([[0, 1, 0], [-1, -1, -1], [1, -1, -1]]))
        outputs = random_outputs(5, 3, 2, 16, 16)
        network = small_network(CornerNet, 2)
        both = network.losses(outputs, targets)
        alone = [
            network.losses(
                {name: value[b : b + 1] for name, value in outputs.items()},
                Targets(
                    targets.boxes[b : b + 1],
                    targets.labels[b : b + 1],
                    targets.ignored[b : b + 1],
                    targets.image_sizes[b : b + 1],
                ),
            )
            for b in (0, 2)
        ]
        for name in ("pull", "push"):
            assert both[name].item() == pytest.approx((alone[0][name] + alone[1][name]).item() / 2, rel=1e-5)

    def test_more_than_128_objects_are_all_positives(self):
        targets = random_targets(6, batch=2, count=300, num_classes=4, size=128)
        network = small_network(CornerNet, 4)
        outputs = random_outputs(7, 2, 4, 32, 32)
        maps, cells = network.assign(outputs, targets)
        for corner in CORNERS:
            wanted = {
                (b, label, column, row)
                for b in range(2)
                for label, (column, row) in zip(
                    targets.labels[b].tolist(), cells[corner][b].tolist(), strict=True
                )
            }
            assert maps[corner].num_positives() == len(wanted) > 400
        assert all(torch.isfinite(value) for value in network.losses(outputs, targets).values())

    def test_crowd_regions_are_ignored(self):
        targets = random_targets(8, batch=1, count=2, num_classes=2)
        targets = replace(
            targets,
            boxes=torch.tensor([[[2.0, 2, 20, 20], [32, 32, 48, 64]]]),
            ignored=torch.tensor([[False, True]]),
        )
        outputs = {k: v.requires_grad_() for k, v in random_outputs(9, 1, 2, 16, 16).items()}
        losses = small_network(CornerNet, 2).losses(outputs, targets)
        weighted_sum(losses, {}).backward()
        for corner in CORNERS:
            moved = outputs[corner].grad[0].abs().sum(0) > 0
            assert not moved[8:16, 8:12].any() and moved.sum() == 16 * 16 - 8 * 4


def decoded_by_hand(
    outputs: dict, b: int, size: tuple[int, int], corners: int, pairs: int, limit: int, sigma: float
) -> list[tuple]:
    """Decode by testing every pair of the best peaks (CornerNet, 4.2)."""
    best = {}
    for corner in CORNERS:
        heat = outputs[corner][b].float().sigmoid().numpy()
        tag, offset = outputs[f"{corner}_tag"][b, 0], outputs[f"{corner}_offset"][b]
        best[corner] = [
            (
                s,
                c,
                (j + offset[0, i, j].item()) * STRIDE,
                (i + offset[1, i, j].item()) * STRIDE,
                tag[i, j].item(),
            )
            for s, c, i, j in peaks_by_hand(heat)[:corners]
        ]
    found = []
    for s, c, x1, y1, tag in best["top_left"]:
        for s2, c2, x2, y2, tag2 in best["bottom_right"]:
            if c == c2 and abs(tag - tag2) <= 0.5 and x2 > x1 and y2 > y1:
                found.append(((s + s2) / 2, c, x1, y1, x2, y2))
    found = sorted(found, reverse=True)[:pairs]
    return soft_nms_by_hand(clipped_by_hand(found, *size), sigma, limit)


class TestDecode:
    @pytest.mark.parametrize(
        "classes, height, width, options",
        [
            (1, 12, 12, {}),
            (4, 8, 12, {}),
            (3, 16, 16, {"max_corners": 20, "soft_nms_sigma": 0.2}),
            (2, 16, 8, {"max_pairs": 30, "max_detections": 12}),
        ],
    )
    def test_decoding_equals_testing_all_pairs(self, classes, height, width, options):
        network = small_network(CornerNet, classes, **options)
        outputs = random_outputs(classes, 3, classes, height, width)
        sizes = torch.tensor(
            [[height * STRIDE, width * STRIDE], [height * STRIDE - 9, width * STRIDE - 5], [20, 20]]
        )
        found = network.decode(outputs, sizes)
        assert sum(len(detections.scores) for detections in found) > 10
        for b in range(3):
            expected = decoded_by_hand(
                outputs, b, sizes[b].tolist(), network.max_corners, network.max_pairs, network.max_detections,
                network.soft_nms_sigma,
            )  # fmt: skip
            assert_same_detections(found[b], expected)

    def test_no_pair_gives_no_detections(self):
        outputs = random_outputs(0, 2, 2, 8, 8)
        outputs["top_left_tag"] = outputs["top_left_tag"] + 100
        assert [
            len(d.scores) for d in small_network(CornerNet, 2).decode(outputs, torch.full((2, 2), 32))
        ] == [0, 0]


def perfect_outputs(network: CornerNet, targets: Targets, height: int, width: int) -> dict:
    """The outputs of a perfect network: Gaussians, exact offsets, and a different tag for each object."""
    height, width = height // STRIDE, width // STRIDE
    maps, cells = network.assign({"top_left": torch.empty(1, 1, height, width)}, targets)
    tags = 2 * torch.arange(targets.labels.shape[1]).view(1, -1, 1).float()
    outputs = {}
    for corner in CORNERS:
        offset = corner_points(targets.boxes, corner) / STRIDE - cells[corner]
        outputs[corner] = perfect_logits(maps[corner], height, width)
        outputs[f"{corner}_tag"] = put_at_cells(cells[corner], tags, targets.valid, height, width)
        outputs[f"{corner}_offset"] = put_at_cells(cells[corner], offset, targets.valid, height, width)
    return outputs


def round_trip(index) -> tuple[float, float]:
    """AP of ground truth through targets and decoding, and the share of objects that have a corner in one cell with a
    corner of another object of their class: there one tag and one offset must serve two."""
    found, sharing, objects = {}, 0, 0
    for i, targets, classes, (height, width) in images_of(index):
        network = small_network(CornerNet, len(classes))
        decoded = network.decode(perfect_outputs(network, targets, height, width), targets.image_sizes)[0]
        found[int(index.image_ids[i])] = replace(decoded, labels=classes[decoded.labels])
        valid = targets.valid[0].nonzero().flatten().tolist()
        for corner in CORNERS:
            cells = (corner_points(targets.boxes[0], corner) // STRIDE).tolist()
            places = [(int(targets.labels[0, k]), *cells[k]) for k in valid]
            sharing += len(places) - len(set(places))
        objects += len(valid)
    return average_precision(index.coco_dict(), found), sharing / objects


class TestRoundTrip:
    """Decoded ground truth has AP >= 0.99; only the objects counted as ``sharing`` are lost."""

    def test_shapes(self, tmp_path):
        folder = generate_shapes(tmp_path, num_train=20, num_val=60)
        ap, sharing = round_trip(read_shapes(folder, split="val", annotation_format="coco"))
        assert ap >= 0.99 and sharing < 0.01

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_coco_sample(self, shared_data, split):
        folder = shared_data / "coco_sample"
        index = read_coco(folder / "annotations" / f"instances_{split}2017.json", folder / f"{split}2017")
        ap, sharing = round_trip(index)
        assert ap >= 0.99 and sharing < 0.01

    def test_bccd(self, shared_data):
        ap, sharing = round_trip(read_voc(shared_data / "bccd", ["test"], policy="skip"))
        assert ap >= 0.99 and sharing < 0.01

    def test_more_than_128_objects_in_one_image_are_decoded(self):
        targets = crowded_targets(num_classes=3)
        network = small_network(CornerNet, 3, max_corners=200, max_detections=200)
        found = network.decode(perfect_outputs(network, targets, 512, 512), targets.image_sizes)[0]
        assert_all_found(targets, found)
        assert (found.scores > 0.5).sum() == 196
