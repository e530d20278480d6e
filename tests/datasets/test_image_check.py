"""The image check on images that are broken in known ways: reading, training and the check reject the same files."""

from __future__ import annotations

import json
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets import (
    DataError,
    DetectionDataset,
    PadOnly,
    image_check,
    images,
    read_coco,
    read_image,
    read_image_file,
)
from tests.datasets.test_dataset import png_header

PICTURE = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)


def encoded(suffix: str, picture: np.ndarray = PICTURE) -> bytes:
    return cv2.imencode(suffix, picture)[1].tobytes()


def damaged_middle() -> bytes:
    """A PNG with a complete end whose pixels do not match their checksum."""
    data = bytearray(encoded(".png"))
    data[len(data) // 2] ^= 255
    return bytes(data)


BROKEN = {
    "pointer file": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "web page": b"<!DOCTYPE html><html><body>404</body></html>",
    "empty": b"",
    "half JPEG": encoded(".jpg")[:600],
    "half PNG": encoded(".png")[:600],
    "half WebP": encoded(".webp")[: len(encoded(".webp")) // 2],
    "half TIFF": encoded(".tif")[:300],
    "wrong pixels": damaged_middle(),
}


def counts(index) -> dict[str, int]:
    return {kind: defect.count for kind, defect in index.defects.items()}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_images_are_skipped_and_counted_or_rejected_before_training(write_coco, small_coco, data):
    path, root = write_coco(small_coco)
    whole = read_coco(path, root)
    (root / "a.jpg").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.jpg \(id 7\) is damaged.*or set dataset.policy=skip"):
        read_coco(path, root)
    index = read_coco(path, root, policy="skip")
    assert counts(index) == {"broken_image": 1} and index.file_names == ["b.png"]
    # Training would also have rejected the image.
    with pytest.raises(DataError, match="is damaged"):
        DetectionDataset(whole, PadOnly())[0, 0]


def test_images_that_viewers_rotate_are_counted_in_a_warning(write_coco, small_coco, caplog):
    path, root = write_coco(small_coco)
    read_coco(path, root)
    assert not caplog.records
    rotated = Image.Exif()
    rotated[0x0112] = 3
    Image.fromarray(PICTURE).save(root / "a.jpg", exif=rotated)
    assert counts(read_coco(path, root)) == {}
    assert "1 images have an EXIF rotation, such as" in caplog.text and "a.jpg" in caplog.text


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_tiff_is_rejected_because_opencv_decodes_it_rotated(write_coco, small_coco, orientation):
    path, root = write_coco(small_coco)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PICTURE).save(root / "a.jpg", format="TIFF", exif=exif)
    index = read_coco(path, root, policy="skip")
    assert counts(index) == ({} if orientation == 1 else {"rotated_image": 1})
    if orientation == 1:
        np.testing.assert_array_equal(read_image(index, 0), PICTURE)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp", ".gif"])
def test_complete_images_of_every_format_pass(write_coco, small_coco, suffix):
    small_coco["images"][0]["file_name"] = f"c{suffix}"
    path, root = write_coco(small_coco)
    (root / f"c{suffix}").write_bytes(encoded(suffix))
    assert counts(read_coco(path, root, policy="skip")) == {}


def test_an_image_with_another_size_is_rejected_before_decoding(write_coco, small_coco, monkeypatch):
    path, root = write_coco(small_coco)
    monkeypatch.setattr(images, "_decode", lambda *_: pytest.fail("was decoded"))
    small_coco["images"] = small_coco["images"][:1]
    small_coco["annotations"] = []
    path.write_text(json.dumps(small_coco))
    for size in [(41, 30), (9_000, 9_000)]:
        (root / "a.jpg").write_bytes(png_header(*size))
        with pytest.raises(DataError, match=f"{size[0]} x {size[1]} pixels, its annotations say 40 x 30"):
            read_coco(path, root)
        assert counts(read_coco(path, root, policy="skip")) == {"wrong_image_size": 1}
    # Too large for an image.
    (root / "a.jpg").write_bytes(png_header(30_000, 30_000))
    assert counts(read_coco(path, root, policy="skip")) == {"broken_image": 1}
    with pytest.raises(DataError, match=r"a\.jpg \(id 7\) has more than 179 million pixels; divide it"):
        read_coco(path, root)
    with pytest.raises(DataError, match=r"a\.jpg has more than 179 million pixels; divide it"):
        read_image_file(root / "a.jpg")


@pytest.mark.parametrize(
    ("named", "stored"),
    [
        ("a.jpg", "a.JPG"),
        ("Images/a.jpg", "Images/A.jpg"),
        ("vögel.jpg", "vo\u0308gel.jpg"),  # the form that macOS writes
        ("day 1\\a.jpg", "day 1/a.jpg"),
    ],
)
def test_a_missing_image_with_almost_the_same_name_is_pointed_out(write_coco, small_coco, named, stored):
    small_coco["images"][0]["file_name"] = named
    path, root = write_coco(small_coco)
    (root / stored).parent.mkdir(exist_ok=True)
    (root / "a.jpg").rename(root / stored)
    with pytest.raises(DataError) as caught:
        read_coco(path, root, remedy="set dataset.root")
    message = (
        f"does not exist, but {ascii(stored)} does; write this name in the annotations, or set dataset.policy"
    )
    assert message in str(caught.value)
    small_coco["images"][0]["file_name"] = stored
    path.write_text(json.dumps(small_coco))
    assert len(read_coco(path, root)) == 2


def test_a_missing_image_without_such_a_file_gives_the_remedy_of_the_data_set(write_coco, small_coco):
    for name in ("c.jpg", "nowhere/a.jpg", "C:\\photos\\a.jpg"):
        small_coco["images"][0]["file_name"] = name
        path, root = write_coco(small_coco)
        with pytest.raises(
            DataError, match=r"\(id 7\) does not exist; set dataset\.root, or set dataset\.policy"
        ):
            read_coco(path, root, remedy="set dataset.root")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_only_regular_files_are_read(write_coco, small_coco, kind):
    path, root = write_coco(small_coco)
    index = read_coco(path, root)
    (root / "a.jpg").unlink()
    if kind == "pipe":
        os.mkfifo(root / "a.jpg")
    elif kind == "device":
        (root / "a.jpg").symlink_to("/dev/zero")
    else:
        (root / "a.jpg").mkdir()
    with pytest.raises(DataError, match=r"a\.jpg \(id 7\) (is not a regular file|cannot be read)"):
        read_image(index, 0)
    with pytest.raises(DataError, match=r"a\.jpg (is not a regular file|cannot be read)"):
        read_image_file(root / "a.jpg")
    assert len(read_coco(path, root, policy="skip")) == 1


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the decoded images."""
    names = []

    def noted(index, i):
        names.append(index.file_names[i])
        return read_image(index, i)

    monkeypatch.setattr(image_check, "read_image", noted)
    return names


def test_the_next_start_only_decodes_changed_images(write_coco, small_coco, tmp_path, decoded):
    path, root = write_coco(small_coco)
    cache = tmp_path / "cache"
    read_coco(path, root, policy="skip", cache=cache)
    assert sorted(decoded) == ["a.jpg", "b.png"]
    decoded.clear()
    assert counts(read_coco(path, root, policy="skip", cache=cache)) == {} and decoded == []
    (root / "a.jpg").write_bytes(b"<html>")
    for _ in range(2):
        decoded.clear()
        assert counts(read_coco(path, root, policy="skip", cache=cache)) == {"broken_image": 1}
        assert decoded == ["a.jpg"]
    (root / "b.png").unlink()
    assert counts(read_coco(path, root, policy="skip", cache=cache)) == {
        "broken_image": 1,
        "missing_image": 1,
    }


def test_a_file_counts_as_changed_if_its_annotated_size_changes(write_coco, small_coco, tmp_path):
    path, root = write_coco(small_coco)
    read_coco(path, root, cache=tmp_path / "cache")
    small_coco["images"][0]["width"] = 41
    path.write_text(json.dumps(small_coco))
    assert counts(read_coco(path, root, policy="skip", cache=tmp_path / "cache")) == {"wrong_image_size": 1}


def test_a_damaged_result_is_discarded(write_coco, small_coco, tmp_path, decoded, caplog):
    path, root = write_coco(small_coco)
    cache = tmp_path / "cache"
    first = read_coco(path, root, cache=cache)
    (kept,) = cache.glob("images-*.json")
    data = bytearray(kept.read_bytes())
    data[20] ^= 1
    kept.write_bytes(bytes(data))
    decoded.clear()
    assert read_coco(path, root, cache=cache).coco_dict() == first.coco_dict()
    assert sorted(decoded) == ["a.jpg", "b.png"] and "the images are checked again" in caplog.text
    caplog.clear()
    decoded.clear()
    read_coco(path, root, cache=cache)
    assert decoded == [] and caplog.text == ""


def test_names_are_printed_escaped(write_coco, small_coco):
    small_coco["images"][0]["file_name"] = "\x1b[2J\u202ea.jpg"
    path, root = write_coco(small_coco)
    with pytest.raises(DataError) as caught:
        read_coco(path, root)
    index = read_coco(path, root, policy="skip")
    for message in (str(caught.value), *index.defects["missing_image"].examples):
        assert message.isprintable() and r"\x1b[2J\u202ea.jpg" in message


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)], ids=["grey", "colour"])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32])
def test_samples_that_do_not_fit_are_named_instead_of_damage(tmp_path, shape, kind):
    path = tmp_path / "a.tif"
    assert cv2.imwrite(str(path), np.full(shape, 5, kind))
    with pytest.raises(
        images.ImageError, match="a.tif has samples of 32 bits or of floating.*convert it to 8 bits"
    ):
        read_image_file(path)


def test_16_bits_become_8_by_a_division(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (20, 30), np.uint16)
    for suffix in ("png", "tif"):
        assert cv2.imwrite(str(tmp_path / f"a.{suffix}"), pixels)
        found = read_image_file(tmp_path / f"a.{suffix}")
        assert found.dtype == np.uint8 and np.array_equal(found, (pixels // 256)[..., None].repeat(3, 2))
