"""CenterNet compared with the published losses written out, and encode-decode round trips."""

from functools import partial

import pytest
import torch
from torchvision.ops import box_iou

from afl.losses import ClassificationLoss, QualityFocalLoss
from detectors.centernet import CenterNet
from detectors.contract import ClassCounts, weighted_sum
from tests.detectors.cases import small_network
from tests.detectors.round_trip import BlankBackbone, ground_truth
from tests.detectors.test_heatmap import draw_slowly, random_scene

network = partial(small_network, CenterNet)


def test_losses_equal_the_published_formulas():
    classes, model = 3, network(3).eval()
    targets = random_scene(0, 2, 9, classes, 64)
    outputs = model(torch.randn(2, 3, 64, 64))
    losses = model.losses(outputs, targets)
    centres = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
    heat = draw_slowly(targets, centres, classes, 16, 16, 4)
    crowd = torch.zeros(2, 16, 16, dtype=torch.bool)
    for b, m in targets.ignored_boxes.nonzero():
        x1, y1, x2, y2 = targets.boxes[b, m].tolist()
        for y in range(16):
            for x in range(16):
                crowd[b, y, x] |= x1 <= 4 * x + 2 <= x2 and y1 <= 4 * y + 2 <= y2
    p = outputs["heat"].permute(0, 2, 3, 1).double().sigmoid()
    peak = heat == 1
    positive = -((1 - p) ** 2 * p.log())[peak].sum()
    negative = -((1 - heat) ** 4 * p**2 * (1 - p).log())[~peak & ~crowd.unsqueeze(-1)].sum()
    torch.testing.assert_close(
        losses["heat"].double(), (positive + negative) / peak.sum(), rtol=1e-5, atol=1e-6
    )
    size = offset = 0.0
    for b, m in targets.valid.nonzero():
        x1, y1, x2, y2 = (targets.boxes[b, m] / 4).tolist()
        cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
        x, y = int(cx), int(cy)
        size += (outputs["size"][b, :, y, x] - torch.tensor([x2 - x1, y2 - y1])).abs().sum()
        offset += (outputs["offset"][b, :, y, x] - torch.tensor([cx - x, cy - y])).abs().sum()
    objects = 2 * targets.valid.sum()  # the official loss divides by the number of coordinates
    torch.testing.assert_close(losses["size"], size / objects)
    torch.testing.assert_close(losses["offset"], offset / objects)


@pytest.mark.parametrize("name", ["shapes", "coco_sample", "bccd"])
def test_decoding_encoded_boxes_restores_them(name, request, tmp_path):
    folder = None if name == "shapes" else request.getfixturevalue("shared_data")
    truth = ground_truth(name, folder, tmp_path)
    classes = truth.index.num_classes
    model = CenterNet(
        backbone=BlankBackbone(4), classes=ClassCounts(torch.ones(classes), torch.ones(classes)),
        loss=ClassificationLoss, channels=1, head_channels=1, max_detections=300,
    ).eval()  # fmt: skip
    found, hidden = {}, {}
    for number, image in truth.images.items():
        outputs = {k: v.detach().clone() for k, v in model(image.pixels).items()}
        target, cells = model.assign(outputs, image.targets)
        height, width = outputs["heat"].shape[-2:]
        # Two neighbouring centres of the same class would not be two local maxima.
        heat = torch.full((height * width * classes,), -20.0)
        heat[target.positive] = 10.0
        outputs["heat"] = heat.view(1, height, width, classes).permute(0, 3, 1, 2)
        boxes, valid = image.targets.boxes[0], image.targets.valid[0]
        centre, sides = (boxes[:, :2] + boxes[:, 2:]) / 8, (boxes[:, 2:] - boxes[:, :2]) / 4
        taken, hidden[number] = {}, torch.zeros(1, len(boxes), dtype=torch.bool)
        for m in valid.nonzero().flatten().tolist():
            x, y = cells[0, m].tolist()
            outputs["size"][0, :, y, x] = sides[m]
            outputs["offset"][0, :, y, x] = centre[m] - cells[0, m]
            # Of two centres in one cell, only the size of the later one is written.
            if (x, y) in taken:
                hidden[number][0, taken[x, y]] = True
            taken[x, y] = m
        found[number] = model.decode(outputs, image.targets.image_sizes)[0]
    lost, total = (
        sum(int(h.sum()) for h in hidden.values()),
        sum(int(i.targets.valid.sum()) for i in truth.images.values()),
    )
    print(f"{name}: {lost} of {total} objects share their centre cell with another")
    assert lost <= 0.01 * total
    assert truth.average_precision(found, hidden) >= 0.99


@pytest.mark.parametrize("size_loss", ["l1", "giou"])
@pytest.mark.parametrize("count", [0, 1, 150])
@pytest.mark.parametrize("loss", [ClassificationLoss, QualityFocalLoss])
def test_any_number_of_objects_and_a_batch_of_one_work(count, size_loss, loss):
    model = network(3, size_loss=size_loss, loss=loss).train()
    targets = random_scene(2, 1, count, 3, 64)
    losses = model.losses(model(torch.randn(1, 3, 64, 64)), targets)
    weighted_sum(losses, model.loss_weights).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_cells_that_are_no_peaks_are_not_detections():
    detector = network(1).eval()
    rows = torch.arange(24.0)
    bump = 4 - ((rows[:, None] - 9) ** 2 + (rows - 14) ** 2) / 10
    outputs = detector(torch.zeros(1, 3, 96, 96))
    outputs["heat"] = bump.T.reshape_as(outputs["heat"])
    outputs["size"] = torch.full_like(outputs["size"], 20.0)
    (found,) = detector.decode(outputs, torch.tensor([[96, 96]]))
    assert found.scores.tolist() == pytest.approx([torch.sigmoid(torch.tensor(4.0)).item()])


def test_a_negative_size_has_a_gradient_that_increases_it():
    model = network(1, size_loss="giou").train()
    targets = random_scene(5, 1, 3, 1, 64)
    outputs = model(torch.randn(1, 3, 64, 64))
    size = torch.full_like(outputs["size"], -2.0, requires_grad=True)
    model.losses({**outputs, "size": size}, targets)["size"].backward()
    assert (size.grad <= 0).all() and (size.grad < 0).any()


def test_first_loss_on_coco_sized_maps_equals_closed_form():
    # With prior 0.1 (bias -2.197) every negative has the loss p^2 (-ln(1 - p)); 80 classes on 128 x 128 cells.
    model = network(80, prior=0.10065)
    heat = torch.full((1, 80, 128, 128), float(torch.logit(torch.tensor(0.10065))))
    targets = random_scene(0, 1, 0, 80, 512)
    outputs = {"heat": heat, "size": torch.zeros(1, 2, 128, 128), "offset": torch.zeros(1, 2, 128, 128)}
    assert model.losses(outputs, targets)["heat"].item() == pytest.approx(1408.7, rel=1e-3)


def test_overlap_of_peaks_equals_a_loop_over_objects():
    model, targets = network(3).eval(), random_scene(4, 2, 6, 3, 64)
    model.classification["heat"].uses_overlap = True
    outputs = model(torch.randn(2, 3, 64, 64))
    outputs["size"] = outputs["size"] + 4
    target, _ = model.assign(outputs, targets)
    for element, overlap, owner in zip(target.positive, target.overlap, target.object, strict=True):
        b, m = divmod(int(owner), 6)
        cell, label = divmod(int(element), 3)
        y, x = divmod(cell - b * 256, 16)
        assert label == targets.labels[b, m]
        w, h = outputs["size"][b, :, y, x].tolist()
        dx, dy = outputs["offset"][b, :, y, x].tolist()
        box = torch.tensor([[x + dx - w / 2, y + dy - h / 2, x + dx + w / 2, y + dy + h / 2]]) * 4
        torch.testing.assert_close(overlap, box_iou(box, targets.boxes[b, m : m + 1])[0, 0])
