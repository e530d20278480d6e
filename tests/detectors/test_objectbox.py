"""ObjectBox compared with its paper's equations and slow references, and encode-decode round trips of ground truth."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torchvision.ops import box_iou

import detectors.objectbox
from afl.losses import AdaptiveGradient, ClassificationLoss, ClassWeights
from afl.losses.target import PADDING
from detectors.contract import ClassCounts, weighted_sum
from detectors.objectbox import ObjectBox, boxes_from_distances, cells_of_objects, sdiou
from tests.detectors.cases import Curious, make_targets, small_network
from tests.detectors.round_trip import BlankBackbone, ground_truth


def objectbox(num_classes=3, **options):
    ramp = torch.arange(1.0, num_classes + 1)
    return small_network(ObjectBox, num_classes, classes=ClassCounts(10 * ramp, 5 * ramp), **options)


def random_targets(seed, *numbers, size=96, smallest=4.0):
    generator = torch.Generator().manual_seed(seed)
    boxes = []
    for n in numbers:
        sides = smallest * (0.9 * size / smallest) ** torch.rand(n, 2, generator=generator)
        low = torch.rand(n, 2, generator=generator) * (size - sides)
        boxes.append(torch.cat([low, low + sides], 1))
    labels = [torch.randint(3, (n,), generator=generator) for n in numbers]
    ignored = [torch.rand(n, generator=generator) < 0.2 for n in numbers]
    return make_targets(boxes, labels, ignored, (size, size))


def random_outputs(model, targets, seed=0):
    """Outputs of a partly trained network, with boxes of all qualities."""
    generator = torch.Generator().manual_seed(seed)
    batch, size = len(targets.labels), targets.image_sizes[0].tolist()
    outputs = model(torch.zeros(batch, 3, *size))
    for name in ("objectness", "classes", "distances"):
        noise = torch.randn(outputs[name].shape, generator=generator)
        outputs[name] = (outputs[name].detach() + noise).requires_grad_()
    return outputs


def test_sdiou_equals_the_papers_equation():
    def value(p, t):
        return sdiou(torch.tensor([p]), torch.tensor([t])).item()

    assert value((3.0, 3.0, 3.0, 3.0), (3.0, 3.0, 3.0, 3.0)) == 1
    # Inner sides 5 and 5, outer sides 7 and 7, and all four distances differ by 1: (50 - 4) / 98.
    assert value((4.0, 4.0, 4.0, 4.0), (3.0, 3.0, 3.0, 3.0)) == pytest.approx(0.4694, abs=1e-4)
    assert value((3.0, 2.0, 5.0, 4.0), (2.5, 2.0, 5.5, 3.0)) == pytest.approx(0.6985, abs=1e-4)
    # The official form squares the inner side of -0.8, which gives -0.6472 here and 3.5 below.
    assert value((0.1, 0.1, 0.1, 0.1), (3.0, 3.0, 3.0, 3.0)) == pytest.approx((0 - 4 * 2.9**2) / 50)
    assert value((0.1, 0.1, 0.1, 0.1), (0.6, 0.6, 0.6, 0.6)) == pytest.approx(
        (0 - 4 * 0.5**2) / 0.08, rel=1e-4
    )


distance = st.floats(0.0, 20.0, allow_nan=False, width=32)


@settings(max_examples=200, deadline=None)
@given(p=st.tuples(*[distance] * 4), t=st.tuples(*[distance] * 4))
def test_sdiou_never_exceeds_one_and_is_symmetric(p, t):
    p, t = torch.tensor([p]), torch.tensor([t])
    assert sdiou(p, t) <= 1 + 1e-6
    assert sdiou(p, t) == sdiou(t, p)


def test_box_loss_gradient_equals_finite_differences():
    generator = torch.Generator().manual_seed(0)
    p = (torch.rand(6, 4, generator=generator, dtype=torch.float64) * 4 + 1).requires_grad_()
    t = torch.rand(6, 4, generator=generator, dtype=torch.float64) * 4 + 1
    assert torch.autograd.gradcheck(lambda p: sdiou(p, t), p)


def test_an_object_has_twelve_positives_on_three_levels():
    # Centre (50, 46): at stride 4 column 12 row 11, whose fractions .5 and .5 point right and down; at stride 8
    # column 6 row 5, fractions .25 and .75: left and down; at stride 16 column 3 row 2, .125 and .875: left and down.
    targets = make_targets([[[30.0, 20.0, 70.0, 72.0]]], [[1]])
    model = objectbox()
    outputs = model(torch.zeros(1, 3, 96, 96))
    claims = model.assign(outputs, targets)
    cells = outputs["cells"][claims.location].tolist()
    assert cells[:4] == [[12, 11], [13, 11], [12, 12], [13, 12]]
    assert cells[4:8] == [[6, 5], [5, 5], [6, 6], [5, 6]]
    assert cells[8:] == [[3, 2], [2, 2], [3, 3], [2, 3]]
    # Left and top from the lower right corner of cell (12, 11), right and bottom from its upper left one.
    expected = torch.tensor([13 - 30 / 4, 12 - 20 / 4, 70 / 4 - 12, 72 / 4 - 11])
    torch.testing.assert_close(claims.distances[0], expected)


def test_assignment_equals_a_loop_over_objects():
    targets = random_targets(1, 12, 0, 5, smallest=1.0)
    model = objectbox()
    outputs = model(torch.zeros(3, 3, 96, 96))
    claims = model.assign(outputs, targets)
    expected = []
    for i in range(3):
        for k in range(targets.labels.shape[1]):
            if targets.labels[i, k] < 0 or targets.ignored[i, k]:
                continue
            start = 0
            for stride in (4, 8, 16):
                side = 96 // stride
                x1, y1, x2, y2 = (v / stride for v in targets.boxes[i, k].tolist())
                cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
                across = -1 if cx - int(cx) < 0.5 else 1
                down = -1 if cy - int(cy) < 0.5 else 1
                for dy in (0, down):
                    for dx in (0, across):
                        x, y = int(cx) + dx, int(cy) + dy
                        sides = (x + 1 - x1, y + 1 - y1, x2 - x, y2 - y)
                        if 0 <= x < side and 0 <= y < side and min(sides) > 0:
                            expected.append(
                                (i * 756 + start + y * side + x, i * targets.labels.shape[1] + k, sides)
                            )
                start += side * side
    assert outputs["cells"].shape[0] == 756
    assert claims.location.tolist() == [location for location, _, _ in expected]
    assert claims.object.tolist() == [k for _, k, _ in expected]
    torch.testing.assert_close(claims.distances, torch.tensor([sides for _, _, sides in expected]))
    assert (claims.image.diff() >= 0).all()


@settings(max_examples=100, deadline=None)
@given(
    corner=st.tuples(*[st.floats(0, 60, width=32)] * 2), sides=st.tuples(*[st.floats(1, 30, width=32)] * 2)
)
def test_distances_of_every_cell_restore_the_box(corner, sides):
    box = torch.tensor([[[*corner, corner[0] + sides[0], corner[1] + sides[1]]]])
    for stride in (4, 8, 16):
        cells, distances, usable = cells_of_objects(box / stride, 96 // stride, 96 // stride)
        assert usable[0, 0, 0], "the cell of the centre always represents the object"
        count = int(usable.sum())
        found = boxes_from_distances(
            cells[usable].float(), torch.full((count,), float(stride)), distances[usable]
        )
        torch.testing.assert_close(found, box[0].expand(count, 4), rtol=0, atol=1e-4)
        # Left and right are measured from opposite sides of the cell, so their sum is one cell more than the width.
        torch.testing.assert_close(
            (distances[usable][:, 0] + distances[usable][:, 2] - 1) * stride,
            torch.full((count,), sides[0]),
            rtol=0,
            atol=1e-4,
        )


def test_losses_equal_a_loop_over_cells_and_claims():
    targets = random_targets(2, 9, 4, 0)
    model = objectbox(loss=Curious)
    outputs = random_outputs(model, targets)
    losses = model.losses(outputs, targets)
    claims = model.assign(outputs, targets)
    with torch.no_grad():
        reach = torch.cat([torch.full((n,), r) for n, r in ((576, 4.0), (144, 8.0), (36, 16.0))]).repeat(3)
        raw = outputs["distances"].flatten(0, 1)[claims.location]
        predicted = (2 * raw.sigmoid()) ** 2 * reach[claims.location].unsqueeze(1) / 4
        similarity = sdiou(predicted, claims.distances)
        overlaps = boxes_from_distances(
            outputs["cells"].repeat(3, 1)[claims.location],
            outputs["strides"].repeat(3)[claims.location],
            predicted,
        )
        overlaps = box_iou(overlaps, targets.boxes.flatten(0, 1))

    best = {}
    for n, (location, quality) in enumerate(zip(claims.location.tolist(), similarity.tolist(), strict=True)):
        quality = min(max(quality, 0.0), 1.0)
        if location not in best or quality > best[location][0]:
            best[location] = (quality, n)
    assert len(best) < len(claims.location), "some cells are shared"

    objectness, quality_loss = outputs["objectness"].flatten().tolist(), 0.0
    for location, z in enumerate(objectness):
        image, cell = divmod(location, 756)
        x, y = ((outputs["cells"][cell] + 0.5) * outputs["strides"][cell]).tolist()
        boxes = targets.boxes[image][targets.ignored_boxes[image]].tolist()
        if location not in best and any(b[0] <= x <= b[2] and b[1] <= y <= b[3] for b in boxes):
            continue
        y = best[location][0] if location in best else 0.0
        p = torch.tensor(z).sigmoid()
        cross_entropy = F.binary_cross_entropy(p, torch.tensor(y))
        quality_loss += float((p - y).abs() ** 2 * cross_entropy)
    torch.testing.assert_close(losses["objectness"].item(), quality_loss / len(best), rtol=1e-4, atol=1e-6)

    labels = targets.labels.flatten()[claims.object]
    p = outputs["classes"].flatten(0, 1)[claims.location].sigmoid()
    wanted = F.one_hot(labels, 3).float()
    by_class = ((p - wanted).abs() ** 2 * F.binary_cross_entropy(p, wanted, reduction="none")).sum() / len(
        labels
    )
    torch.testing.assert_close(losses["class"], by_class, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["box"], (1 - similarity).mean())

    target = model.classification["objectness"].call[1]
    winners = [best[location][1] for location in sorted(best)]
    assert target.positive.tolist() == sorted(best)
    assert target.object.tolist() == claims.object[winners].tolist()
    torch.testing.assert_close(target.overlap, overlaps[winners, claims.object[winners]])
    by_class = model.classification["class"].call[1]
    assert by_class.object.tolist() == claims.object.tolist()
    torch.testing.assert_close(by_class.overlap, overlaps[range(len(labels)), claims.object])


def test_class_weights_act_only_on_the_class_map():
    targets = random_targets(3, 6, 6)
    weighted = partial(
        ClassificationLoss, gamma=0.0, chain={"class_weights": partial(ClassWeights, cap=None)}
    )
    plain, model = objectbox(loss=partial(ClassificationLoss, gamma=0.0)), objectbox(loss=weighted)
    model.load_state_dict(plain.state_dict(), strict=False)
    outputs = random_outputs(plain, targets)
    expected, losses = plain.losses(outputs, targets), model.losses(outputs, targets)
    assert losses["objectness"] == expected["objectness"]
    claims = model.assign(outputs, targets)
    z = outputs["classes"].flatten(0, 1)[claims.location]
    label = targets.labels.flatten()[claims.object]
    # Cui et al., equation 2, for 10, 20 and 30 instances, with the most frequent class at 1.
    effective = torch.tensor([(1 - 0.999**n) / (1 - 0.999) for n in (10, 20, 30)])
    wanted = F.one_hot(label, 3).float()
    weight = torch.where(wanted > 0, (effective[2] / effective)[label].unsqueeze(1), 1.0)
    by_class = F.binary_cross_entropy_with_logits(z, wanted, weight, reduction="sum") / len(label)
    torch.testing.assert_close(losses["class"], by_class, rtol=1e-5, atol=0)


def test_only_objectness_receives_the_weighted_box_loss():
    targets = random_targets(4, 3)
    model = objectbox(loss=Curious, box_weight=3.0)
    losses = model.losses(random_outputs(model, targets), targets)
    torch.testing.assert_close(model.classification["objectness"].call[3], 3 * losses["box"].detach())
    assert model.classification["class"].call[3] is None


@pytest.mark.parametrize("num_classes", [1, 2, 80])
def test_an_untrained_head_predicts_the_priors_for_any_number_of_classes(num_classes):
    gated = partial(
        ClassificationLoss, chain={"weights": ClassWeights, "gradient": partial(AdaptiveGradient, kappa=1.0)}
    )
    seen = []
    model = objectbox(num_classes, loss=lambda info: seen.append(info) or gated(info))
    objectness, by_class = seen
    assert (objectness.name, objectness.num_classes) == ("objectness", 1)
    assert objectness.instances_per_class.tolist() == [10 * num_classes * (num_classes + 1) / 2]
    assert (by_class.name, by_class.num_classes) == ("class", num_classes)
    # The published bias is log(0.6 / (C - 0.99)), limited to a probability of 0.3.
    official = torch.tensor(0.6 / (num_classes - 0.99)).log().sigmoid().item()
    assert by_class.prior == pytest.approx(min(official, 0.3), rel=1e-5)
    for layers in (model.last_objectness_layers, model.last_class_layers, model.box_layers):
        for layer in layers:
            torch.nn.init.zeros_(layer.weight)
    outputs = model.eval()(torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(outputs["objectness"].sigmoid().mean().item(), objectness.prior)
    torch.testing.assert_close(outputs["classes"].sigmoid().mean().item(), by_class.prior)


ARMS = ("fl", "fl_positive", "cbl", "cbfl", "cbfl_deferred", "afl", "afl_balanced", "afl_per_class")


@pytest.mark.parametrize("arm", ARMS)
def test_every_loss_learns_both_maps_of_one_batch(arm, repository):
    loss = instantiate(OmegaConf.load(repository / "conf" / "loss" / f"{arm}.yaml"), _convert_="all")
    targets = random_targets(6, 5, 3)
    torch.manual_seed(0)
    model = objectbox(loss=loss)
    images = torch.randn(2, 3, 96, 96)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    curve = []
    for _ in range(12):
        losses = model.losses(model(images), targets)
        optimizer.zero_grad()
        weighted_sum(losses, model.loss_weights).backward()
        optimizer.step()
        for one in model.classification.values():
            one.update()
        curve.append(losses)
    # The deferred weights hardly act within twelve steps, so the losses are comparable.
    assert curve[-1]["class"] < 0.9 * curve[0]["class"]
    assert all(value.isfinite() for losses in curve for value in losses.values())


@pytest.mark.parametrize("name", ["shapes", "coco_sample", "bccd"])
def test_decoding_encoded_ground_truth_gives_full_ap(name, shared_data, tmp_path):
    truth = ground_truth(name, shared_data, tmp_path)
    strides = truth.strides[:3]
    model = objectbox(
        truth.index.num_classes, strides=strides, backbone=BlankBackbone(*strides), max_detections=300
    )
    found, too_large, objects = {}, 0, 0
    for number, image in truth.images.items():
        with torch.no_grad():
            outputs = model(image.pixels)
        claims = model.assign(outputs, image.targets)
        encode(outputs, claims, image.targets)
        found[number] = model.decode(outputs, image.targets.image_sizes)[0]
        within = (claims.distances < outputs["reach"][claims.location].unsqueeze(1)).all(1)
        valid = image.targets.valid.flatten().nonzero().flatten().tolist()
        too_large += len(set(valid) - set(claims.object[within].tolist()))
        objects += len(valid)
    # Two objects of coco_sample fill images of 1333 pixels, and the coarsest level reaches 512 pixels to each side.
    assert too_large == {"shapes": 0, "coco_sample": 2, "bccd": 0}[name] and objects > 200
    assert truth.average_precision(found, {}) >= 0.99


def encode(outputs, claims, targets):
    """Write the outputs of one image that describe the claims exactly, within the reach of their levels."""
    reach = outputs["reach"][claims.location].unsqueeze(1)
    share = (claims.distances / reach).clamp(max=1 - 1e-6)
    outputs["objectness"].fill_(-15)
    outputs["classes"].fill_(-15)
    for n, at in enumerate(claims.location.tolist()):  # a shared cell describes its last object
        outputs["distances"][0, at] = torch.logit(share[n].sqrt())
        outputs["objectness"][0, at] = torch.logit(sdiou(share[n] * reach[n], claims.distances[n]), eps=1e-6)
        outputs["classes"][0, at] = -15
        outputs["classes"][0, at, targets.labels[0, claims.object[n]]] = 15.0


def test_scores_are_objectness_times_class():
    model = objectbox(num_classes=2, backbone=BlankBackbone(4, 8, 16))
    with torch.no_grad():
        outputs = model(torch.zeros(1, 3, 64, 64))
    outputs["objectness"].fill_(-30)
    outputs["objectness"][0, 40] = 1.0
    outputs["classes"][0, 40] = torch.tensor([2.0, -1.0])
    found = model.decode(outputs, torch.tensor([[64, 64]]))[0]
    logits = torch.tensor([2.0, -1.0])
    torch.testing.assert_close(found.scores, torch.tensor(1.0).sigmoid() * logits.sigmoid())
    assert found.labels.tolist() == [0, 1]


def test_padding_of_positives_does_not_change_the_losses(monkeypatch):
    targets = random_targets(5, 7, 0, 3, 0)
    model = objectbox(loss=Curious)
    outputs = random_outputs(model, targets)
    leaves = [outputs[name] for name in ("objectness", "classes", "distances")]

    def gradients():
        losses = model.losses(outputs, targets)
        return losses, torch.autograd.grad(weighted_sum(losses, model.loss_weights), leaves)

    losses, expected = gradients()
    monkeypatch.setattr(
        detectors.objectbox,
        "nonzero_padded",
        lambda mask, size: torch.nonzero_static(mask, size=size, fill_value=-1).flatten(),
    )
    padded, found = gradients()
    for loss in model.classification.values():
        assert loss.call[1].positive.eq(PADDING).any()
        assert (loss.call[1].image.diff() >= 0).all()
    torch.testing.assert_close(padded, losses)
    torch.testing.assert_close(found, expected)
