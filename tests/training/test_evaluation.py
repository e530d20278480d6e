"""Views of test-time augmentation, and the mapping back to pixels of the file."""

import pytest
import torch
from torch import nn

from afl.training.detect import TestTime, detect_view, merge, to_original
from detectors.contract import Detections


class BrightSpot(nn.Module):
    """A detector with a known result: the box of all pixels brighter than 0.5."""

    max_detections = 10

    def forward(self, images):
        return {"images": images}

    def decode(self, outputs, image_sizes):
        found = []
        for image, (height, width) in zip(outputs["images"], image_sizes.tolist(), strict=True):
            y, x = (image[0] > 0.5).nonzero().T
            box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
            assert box[2] <= width + 1 and box[3] <= height + 1
            found.append(Detections(box.unsqueeze(0), torch.tensor([0.9]), torch.tensor([1])))
        return found


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
def test_every_view_finds_the_same_box_in_input_pixels(scale, mirrored):
    images = torch.zeros(2, 3, 64, 96)
    images[0, :, 16:32, 8:40] = 1.0
    images[1, :, 4:8, 60:64] = 1.0
    sizes = torch.tensor([[64, 96], [40, 64]])  # the second image is padded on the right and below
    found = detect_view(BrightSpot(), images, sizes, scale=scale, mirrored=mirrored, autocast=None)
    blur = 0.0 if scale == 1.0 else 1 / scale  # resampling shifts an edge by less than a pixel of the view
    torch.testing.assert_close(found[0].boxes, torch.tensor([[8.0, 16.0, 40.0, 32.0]]), atol=blur, rtol=0)
    torch.testing.assert_close(found[1].boxes, torch.tensor([[60.0, 4.0, 64.0, 8.0]]), atol=blur, rtol=0)


@pytest.mark.parametrize(("height", "width", "scale"), [(96, 96, 0.9), (96, 160, 1.1), (64, 96, 0.7)])
def test_a_scaled_view_has_the_exact_scale_and_is_padded(height, width, scale):
    seen = {}

    class Watched(BrightSpot):
        def forward(self, images):
            seen["shape"], seen["images"] = images.shape, images
            return super().forward(images)

    images = torch.ones(1, 3, height, width)
    (found,) = detect_view(
        Watched(), images, torch.tensor([[height, width]]), scale=scale, mirrored=False, autocast=None
    )
    inner = round(height * scale), round(width * scale)
    assert seen["shape"][-2:] == tuple(-(-side // 32) * 32 for side in inner)
    assert (seen["images"][0, 0].any(1).sum(), seen["images"][0, 0].any(0).sum()) == inner
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0.0, width, height]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_boxes_of_a_mirrored_view_end_at_the_image_and_those_in_its_padding_are_left_out(scale):
    class WholeView(BrightSpot):
        def decode(self, outputs, image_sizes):
            height, width = outputs["images"].shape[-2:]
            boxes = torch.tensor([[0.0, 0.0, width, height], [0.0, 0.0, 26 * scale, height]])
            return [Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 1]))]

    sizes = torch.tensor(
        [[64, 70]]
    )  # padded to 96 columns, the 26 last of which a mirrored view has on the left
    images = torch.zeros(1, 3, 64, 96)
    (found,) = detect_view(WholeView(), images, sizes, scale=scale, mirrored=True, autocast=None)
    assert found.boxes.tolist() == [[0.0, 0.0, 70.0, 64.0]] and found.scores.tolist() == pytest.approx([0.9])


def test_merging_keeps_the_better_of_two_views_and_other_classes():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    views = [
        Detections(box, torch.tensor([0.5]), torch.tensor([0])),
        Detections(box + 1, torch.tensor([0.8]), torch.tensor([0])),
        Detections(box, torch.tensor([0.3]), torch.tensor([1])),
    ]
    merged = merge(views, nms_iou=0.5, limit=10)
    assert merged.scores.tolist() == pytest.approx([0.8, 0.3]) and merged.labels.tolist() == [0, 1]
    assert len(merge(views, nms_iou=0.5, limit=1).scores) == 1


def test_boxes_are_mapped_back_by_the_inverse_matrix():
    matrix = torch.tensor([[2.0, 0.0, 5.0], [0.0, 0.5, -3.0]])
    inside = torch.tensor([[10.0, 8.0, 20.0, 30.0]])
    as_seen = inside * torch.tensor([2.0, 0.5, 2.0, 0.5]) + torch.tensor([5.0, -3.0, 5.0, -3.0])
    back = to_original(Detections(as_seen, torch.ones(1), torch.zeros(1)), matrix, torch.tensor([100, 100]))
    torch.testing.assert_close(back.boxes, inside)


def test_scales_must_be_positive():
    with pytest.raises(ValueError, match="scales"):
        TestTime(scales=(0.0,))
    assert TestTime(flip=True, scales=(1.0, 2.0)).views == [
        (1.0, False),
        (1.0, True),
        (2.0, False),
        (2.0, True),
    ]


@pytest.mark.parametrize("detector", ["retinanet", "centernet"])
def test_flip_and_scales_work_from_the_command_line(small_cell, detector):
    from afl.training import run_cell

    options = (
        "trainer.max_duration=1steps",
        "trainer.test_time.flip=true",
        "trainer.test_time.scales=[1.0,1.5]",
    )
    assert run_cell(small_cell(detector, "fl", *options)).status == "finished"
