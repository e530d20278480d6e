"""Samples, images and batches."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.io import decode_image

from datasets import (
    PAD_COLOR,
    AnnotationIndex,
    CropTransform,
    DataError,
    DetectionDataset,
    EvalResize,
    FixedTransform,
    PadOnly,
    boxes_in_file,
    collate,
    read_coco,
    read_image,
    read_shapes,
)
from datasets.images import is_cut_off


@pytest.fixture
def small(write_coco, small_coco) -> AnnotationIndex:
    return read_coco(*write_coco(small_coco))


@pytest.fixture(scope="module")
def real(shared_data) -> AnnotationIndex:
    folder = shared_data / "coco_sample"
    return read_coco(folder / "annotations" / "instances_val2017.json", folder / "val2017")


def test_images_equal_torchvision_decoding(real):
    for i in range(6):
        theirs = decode_image(str(real.image_path(i)), mode="RGB").permute(1, 2, 0).numpy()
        # JPEG decoders may round differently.
        assert np.abs(read_image(real, i).astype(int) - theirs).mean() < 1


def test_an_unchanged_sample_equals_the_annotation(real):
    real = replace(real, difficult=np.arange(len(real.labels)) % 3 == 0)
    dataset = DetectionDataset(real, PadOnly())
    for i in range(len(real)):
        sample = dataset[(3, i)]
        chosen = real.annotations(i)
        np.testing.assert_array_equal(sample.boxes, real.boxes[chosen].astype(np.float32))
        np.testing.assert_array_equal(sample.labels, real.labels[chosen])
        np.testing.assert_array_equal(sample.ignored, real.crowd[chosen] | real.difficult[chosen])
        assert sample.image.shape[:2] == sample.original_size == (real.heights[i], real.widths[i])
        assert sample.extreme_points is None and sample.polygons is None and sample.verified is None


def test_a_sample_only_depends_on_seed_epoch_and_number(shapes_folder):
    index = read_shapes(shapes_folder, split="val", annotation_format="coco")

    def image(seed, epoch, i, before=()):
        dataset = DetectionDataset(index, CropTransform(64, border=16), seed=seed, cache_images=bool(before))
        for key in before:
            dataset[key]
        return dataset[(epoch, i)].image

    first = image(0, 1, 5)
    np.testing.assert_array_equal(first, image(0, 1, 5))
    np.testing.assert_array_equal(first, image(0, 1, 5, before=[(0, 5), (1, 4), (1, 5)]))
    for other in (image(1, 1, 5), image(0, 2, 5)):
        assert (first != other).any()


def test_cached_images_are_not_modified(shapes_folder):
    index = read_shapes(shapes_folder, split="val", annotation_format="coco")
    dataset = DetectionDataset(index, FixedTransform(0.5, True, 0.5), cache_images=True)
    before = dataset.unchanged(0).image.copy()
    for epoch in range(6):
        dataset[(epoch, 0)].image[:] = 0
    np.testing.assert_array_equal(dataset.unchanged(0).image, before)
    np.testing.assert_array_equal(before, read_image(index, 0))


def test_extreme_points_without_masks_are_those_of_boxes(shapes_folder):
    index = read_shapes(shapes_folder, split="val", annotation_format="voc")
    with pytest.raises(DataError, match="has no masks.*set dataset.extreme_source=box_sides"):
        DetectionDataset(index, PadOnly(), extreme_source="masks")
    sample = DetectionDataset(index, CropTransform(64, border=16), extreme_source="box_sides")[(0, 0)]
    x1, y1, x2, y2 = sample.boxes.T
    np.testing.assert_allclose(sample.extreme_points[:, 0], np.stack([(x1 + x2) / 2, y1], axis=1))
    np.testing.assert_allclose(sample.extreme_points[:, 3], np.stack([x2, (y1 + y2) / 2], axis=1))


def test_an_unknown_source_of_extreme_points_is_rejected(small):
    with pytest.raises(DataError, match="'masks', 'box_sides' or null, not 'points'"):
        DetectionDataset(small, PadOnly(), extreme_source="points")


def png_header(width: int, height: int) -> bytes:
    """A PNG with correct checksums whose header states this number of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def test_damaged_images_are_named(small):
    path = small.image_path(0)
    whole = path.read_bytes()
    for data, message in (
        (whole[: len(whole) // 2], "damaged"),
        (b"", "damaged"),
        (b"no image", "damaged"),
        (png_header(100_000, 100_000), "has more than 179 million pixels"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=message) as caught:
            DetectionDataset(small, PadOnly())[(0, 0)]
        assert str(path) in str(caught.value) and "id 7" in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.jpg \(id 7\) cannot be read: No such file"):
        read_image(small, 0)
    cv2.imwrite(str(path), np.zeros((40, 30, 3), np.uint8))
    with pytest.raises(DataError, match="30 x 40 pixels, its annotations say 40 x 30"):
        read_image(small, 0)


@settings(max_examples=120, deadline=None)
@given(st.floats(0, 0.999), st.integers(0, 100), st.booleans())
@example(part=0.001, quality=0, png=True)
def test_truncated_files_are_detected_at_any_length(part, quality, png):
    image = np.random.default_rng(quality).integers(0, 255, (24, 31, 3)).astype(np.uint8)
    options = [] if png else [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, quality % 2]
    data = cv2.imencode(".png" if png else ".jpg", image, options)[1].tobytes()
    assert not is_cut_off(data) and not is_cut_off(data + b"trailing bytes")
    # The last four bytes of a PNG are a checksum that does not depend on pixels.
    assert is_cut_off(data[: int(part * (len(data) - 8 if png else len(data)))])


def test_a_batch_contains_every_sample_with_padding(real):
    dataset = DetectionDataset(real, EvalResize(100, 150), extreme_source="masks")
    samples = [dataset[(0, i)] for i in range(4)]
    batch = collate(samples)
    assert batch.images.dtype == torch.uint8 and batch.images.shape[:2] == (4, 3)
    assert batch.images.shape[2] % 32 == batch.images.shape[3] % 32 == 0
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for axis in (0, 1):
        largest = max(sample.image.shape[axis] for sample in samples)
        assert largest <= batch.images.shape[2 + axis] < largest + 32
    for i, sample in enumerate(samples):
        h, w = batch.sizes[i].tolist()
        n = len(sample.labels)
        picture = batch.images[i].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(picture[:h, :w], sample.image)
        assert (picture[h:] == PAD_COLOR).all() and (picture[:, w:] == PAD_COLOR).all()
        np.testing.assert_array_equal(batch.boxes[i, :n], sample.boxes)
        np.testing.assert_array_equal(batch.labels[i, :n], sample.labels)
        np.testing.assert_array_equal(batch.extreme_points[i, :n], sample.extreme_points)
        assert (batch.labels[i, n:] == -1).all() and not batch.ignored[i, n:].any()
        assert batch.image_ids[i] == real.image_ids[i]
        assert batch.original_sizes[i].tolist() == [real.heights[i], real.widths[i]]
        np.testing.assert_allclose(batch.matrices[i], sample.matrix, rtol=1e-6)
    moved = batch.to("cpu", non_blocking=True)
    assert moved.verified is None and torch.equal(moved.boxes, batch.boxes) and len(moved) == 4


def test_padding_is_zero_after_subtraction_of_the_mean():
    mean = 255 * torch.tensor([0.485, 0.456, 0.406])
    std = 255 * torch.tensor([0.229, 0.224, 0.225])
    assert ((torch.tensor(PAD_COLOR) - mean) / std).abs().max() < 0.01


def test_a_batch_without_objects_has_space_for_one_object(small):
    dataset = DetectionDataset(small.select([1]), PadOnly())
    sample = dataset[(0, 0)]
    for name in ("boxes", "labels", "ignored"):
        setattr(sample, name, getattr(sample, name)[:0])
    batch = collate([sample])
    assert batch.boxes.shape == (1, 1, 4) and batch.labels.tolist() == [[-1]]


def test_detections_mapped_back_equal_the_annotations(real):
    dataset = DetectionDataset(real, CropTransform(128, scales=(1.3,), border=300, flip=1.0))
    for i in range(10):
        batch = collate([dataset[(0, i)]])
        kept = batch.labels[0] >= 0
        found = boxes_in_file(batch.boxes[0, kept], batch.matrices[0], batch.original_sizes[0]).numpy()
        original = real.boxes[real.annotations(i)]
        for box in found:
            assert np.abs(original - box).max(axis=1).min() < 0.05


def test_boxes_mapped_back_end_at_the_image():
    mirrored = torch.tensor([[-2.0, 0.0, 200.0], [0.0, 2.0, 0.0]])  # of an image of 100 x 50 pixels
    boxes = torch.tensor([[-10.0, -10.0, 300.0, 300.0], [20.0, 30.0, 60.0, 200.0]])
    found = boxes_in_file(boxes, mirrored, torch.tensor([50, 100]))
    assert found.tolist() == [[0.0, 0.0, 100.0, 50.0], [70.0, 15.0, 90.0, 50.0]]


def test_verified_classes_are_only_returned_on_request(shapes_folder):
    index = read_shapes(shapes_folder, split="val", annotation_format="lvis")
    assert collate([DetectionDataset(index, PadOnly())[(0, 0)]]).verified is None
    asked = collate([DetectionDataset(index, PadOnly(), federated=True)[(0, i)] for i in range(2)])
    assert asked.verified.shape == (2, 30) and asked.verified.all()
