"""The YOLO reader compared with manually computed boxes, and with a set that is written as YOLO files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets import DataError, read_shapes, read_yolo
from tests.datasets.test_dataset import png_header

NAMES = ["cat", "dog", "cow"]


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Two images of 50 x 40 pixels, the second without a text file."""
    for name in ("a", "day 1/b"):
        write_image(tmp_path / "images" / f"{name}.png")
    write_lines(tmp_path, "a", "1 0.5 0.5 0.2 0.1", "0 .1 .25 .2 .5")
    (tmp_path / "data.yaml").write_text("names: [cat, dog, cow]\nnc: 3\n")
    return tmp_path


def write_image(path: Path, width: int = 50, height: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


def write_lines(root: Path, name: str, *lines: str) -> Path:
    path = root / "labels" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def read(root: Path, **settings):
    return read_yolo(root, ["images"], **settings)


def test_boxes_equal_a_manual_computation(yolo):
    index = read(yolo)
    assert index.file_names == ["images/a.png", "images/day 1/b.png"] and index.category_names == NAMES
    assert index.widths.tolist() == [50, 50] and index.heights.tolist() == [40, 40]
    assert index.offsets.tolist() == [0, 2, 2] and index.labels.tolist() == [1, 0]
    # The centre (25, 20) and size 10 x 4; the centre (5, 10) and size 10 x 20.
    np.testing.assert_allclose(index.boxes, [[20, 18, 30, 22], [0, 0, 10, 20]], atol=1e-5)
    np.testing.assert_allclose(index.areas, [40, 200], atol=1e-4)
    assert not index.has_masks


def test_a_polygon_gives_its_box_and_its_extreme_points(yolo):
    write_lines(yolo, "a", "2 0.5 0.1 0.9 0.5 0.4 1.0", "0 0.2 0.2 0.4 0.2 0.4 0.6 0.2 0.6")
    index = read(yolo)
    np.testing.assert_allclose(index.boxes, [[20, 4, 45, 40], [10, 8, 20, 24]], atol=1e-5)
    top, left, bottom, right = index.extreme_points[0]
    for point, expected in ((top, (25, 4)), (left, (20, 40)), (bottom, (20, 40)), (right, (45, 20))):
        np.testing.assert_allclose(point, expected, atol=1e-4)


def test_a_set_written_as_yolo_files_is_restored(shapes_folder, tmp_path):
    truth = read_shapes(shapes_folder, split="val", annotation_format="coco")
    (tmp_path / "images").symlink_to(truth.image_root)
    for i, name in enumerate(truth.file_names):
        lines = []
        for a in range(*truth.offsets[i : i + 2]):
            x1, y1, x2, y2 = truth.boxes[a].astype(float)
            w, h = truth.widths[i], truth.heights[i]
            parts = (x1 + x2) / 2 / w, (y1 + y2) / 2 / h, (x2 - x1) / w, (y2 - y1) / h
            lines.append(" ".join([str(truth.labels[a]), *(f"{part:.7f}" for part in parts)]))
        write_lines(tmp_path, Path(name).stem, *lines)
    index = read(tmp_path, classes=truth.category_names)
    places = {Path(name).name: i for i, name in enumerate(index.file_names)}
    assert set(truth.file_names) <= set(places)
    for i, name in enumerate(truth.file_names):
        own, expected = index.annotations(places[name]), truth.annotations(i)
        np.testing.assert_array_equal(index.labels[own], truth.labels[expected])
        np.testing.assert_allclose(index.boxes[own], truth.boxes[expected], atol=1e-4)


YAML = {
    "list": "names: [cat, dog, cow]",
    "list of lines": "train: images/train\nnames:\n  - cat\n  - dog\n  - cow\n",
    "mapping": "names: {0: cat, 1: dog, 2: cow}",
    "mapping in another order": "names: {2: cow, 0: cat, 1: dog}\nnc: 3",
    "byte order mark": "\ufeffnames: [cat, dog, cow]",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_names_are_a_list_or_a_mapping(yolo, text):
    (yolo / "data.yaml").write_text(text, encoding="utf-8")
    assert read(yolo).category_names == NAMES


BAD_YAML = {
    "gap": ("names: {0: cat, 2: dog}", r"names has the numbers \[0, 2\]; number the classes 0, 1, 2"),
    "from 1": ("names: {1: cat, 2: dog}", r"names has the numbers \[1, 2\]"),
    "texts as numbers": ("names: {'0': cat}", r"names has the numbers \['0'\]"),
    "no names": ("nc: 3", "has no list 'names'"),
    "no mapping": ("- cat", "has no list 'names'"),
    "one text": ("names: cat", "has no list 'names'"),
    "empty": ("names: []", "names is empty"),
    "number": ("names: [cat, 3]", "names has 3, which is read as a number"),
    "truth value": ("names: [cat, no]", "names has False, which is read as a truth value"),
    "twice": ("names: [cat, cat]", "names has 'cat' twice"),
    "nc": ("nc: 4\nnames: [cat, dog]", "has nc = 4 but 2 names"),
    "broken": ("names: [cat", "cannot be read as YAML"),
    "pose": ("names: [cat]\nkpt_shape: [17, 3]", "has kpt_shape, but labels with key points cannot be read"),
}


@pytest.mark.parametrize(("text", "message"), BAD_YAML.values(), ids=BAD_YAML)
def test_invalid_names_give_one_line(yolo, text, message):
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read(yolo, policy="skip")
    assert str(yolo / "data.yaml") in str(caught.value) and "\n" not in str(caught.value)


def test_given_classes_replace_those_of_the_file(yolo):
    assert read(yolo, classes=["x", "y"]).category_names == ["x", "y"]
    (yolo / "data.yaml").unlink()
    with pytest.raises(
        DataError, match=r"no file .*data\.yaml: write it with a list 'names', or set dataset"
    ):
        read(yolo)


LINES = {
    "word": ("1 0.5 half 0.2 0.1", "bad_field", "has cy = 'half', not a number"),
    "nan": ("1 0.5 0.5 nan 0.1", "bad_field", "has w = 'nan', not a number"),
    "pixels": ("1 25 20 10 4", "bad_field", "has cx = '25', not a part of the image between 0 and 1"),
    "negative": ("1 0.5 0.5 0.2 -0.1", "bad_field", "has h = '-0.1', not a part of the image"),
    "pixels of a polygon": ("1 .1 .1 .5 .1 .5 30", "bad_field", "has y3 = '30', not a part of the image"),
    "too few": ("1 0.5 0.5 0.2", "bad_record", "has 4 fields"),
    "with a score": ("1 0.5 0.5 0.2 0.1 0.9", "bad_record", "has 6 fields"),
    "half a point": ("1 .1 .1 .5 .1 .5 .5 .2", "bad_record", "has 8 fields"),
    "class": ("3 0.5 0.5 0.2 0.1", "unknown_category", "has class = '3', but the classes are 0 to 2"),
    "negative class": ("-1 0.5 0.5 0.2 0.1", "unknown_category", "has class = '-1'"),
    "name of a class": ("cat 0.5 0.5 0.2 0.1", "bad_field", "has class = 'cat', not a number"),
    "part of a class": ("0.5 0.5 0.5 0.2 0.1", "bad_field", "has class = '0.5', not a whole number"),
    "no area": ("1 0.5 0.5 0 0.1", "degenerate_box", "has a box without area"),
    "sticks out": ("1 0.9 0.5 0.4 0.1", "box_sticks_out", "has a box that sticks out of its image"),
}


@pytest.mark.parametrize(("line", "kind", "message"), LINES.values(), ids=LINES)
def test_each_bad_line_gives_one_clear_error_or_is_counted(yolo, line, kind, message):
    path = write_lines(yolo, "a", "0 0.5 0.5 0.2 0.1", "", line)
    with pytest.raises(DataError) as caught:
        read(yolo)
    assert f"{path}: line 3 {message}" in str(caught.value) and "\n" not in str(caught.value)
    index = read(yolo, policy="skip")
    assert index.defects[kind].count == 1 and message in index.defects[kind].examples[0]
    assert len(index) == 2 and index.labels[0] == 0
    assert len(index.labels) == (2 if kind == "box_sticks_out" else 1)


def damage_image(root: Path) -> None:
    (root / "images" / "a.png").write_bytes(b"<html>")


def cut_image(root: Path) -> None:
    path = root / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:40])


def replace_by_huge_image(root: Path) -> None:
    (root / "images" / "a.png").write_bytes(png_header(30_000, 30_000))


def rotate_image(root: Path) -> None:
    (root / "images" / "a.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 40)).save(root / "images" / "a.jpg", exif=exif)


def break_text(root: Path) -> None:
    (root / "labels" / "a.txt").write_bytes(b"\xff\xfe0 0.5")


def second_image(root: Path) -> None:
    write_image(root / "images" / "a.jpg")


def remove_image(root: Path) -> None:
    (root / "images" / "a.png").unlink()


FILES = [
    (damage_image, "broken_image", "is damaged and cannot be decoded", 1),
    (cut_image, "broken_image", "is damaged and cannot be decoded", 1),
    (replace_by_huge_image, "broken_image", r"a\.png has more than 179 million pixels; divide it", 1),
    (rotate_image, "rotated_image", "has EXIF orientation 6", 1),
    (break_text, "broken_text", "cannot be read", 1),
    (
        second_image,
        "ambiguous_image",
        r"images/a\.png shares the text file labels/a\.txt with images/a\.jpg",
        2,
    ),
    (remove_image, "unknown_image", r"a\.txt belongs to no image", 1),
]


@pytest.mark.parametrize(
    ("damage", "kind", "message", "left"), FILES, ids=[entry[0].__name__ for entry in FILES]
)
def test_each_bad_file_gives_one_clear_error_or_is_counted(yolo, damage, kind, message, left):
    damage(yolo)
    with pytest.raises(DataError, match=message):
        read(yolo)
    index = read(yolo, policy="skip")
    assert {name: defect.count for name, defect in index.defects.items()} == {kind: 1}
    assert len(index) == left


def test_a_list_of_classes_and_spaces_at_the_ends_of_lines_are_allowed(yolo):
    write_lines(yolo, "classes", *NAMES)
    write_lines(yolo, "a", "1\t0.5  0.5 0.2 0.1 \r")
    assert read(yolo).labels.tolist() == [1]


def test_linked_folders_of_images_and_labels_are_read(yolo, tmp_path_factory):
    """Without them an image would count as one without objects."""
    disk = tmp_path_factory.mktemp("disk")
    write_lines(yolo, "day 1/b", "2 0.5 0.5 0.2 0.1")
    for place in ("images", "labels"):
        (yolo / place / "day 1").rename(disk / place)
        (yolo / place / "day 1").symlink_to(disk / place)
    # `ln -s` run twice leaves such a link.
    (disk / "images" / "images").symlink_to(disk / "images")
    index = read(yolo)
    assert index.file_names == ["images/a.png", "images/day 1/b.png"]
    assert index.labels.tolist() == [1, 0, 2] and not index.defects


def test_copies_that_other_programs_hide_are_not_read(yolo):
    """A hidden copy of an image has no text file, so it would be trained as an image without objects."""
    before = read(yolo).file_names
    write_image(yolo / "images" / ".ipynb_checkpoints" / "a-checkpoint.png")
    (yolo / "images" / "._a.png").write_bytes(b"\0\5\x16\7Mac OS X")
    (yolo / "labels" / "._a.txt").write_bytes(b"\0\5\x16\7Mac OS X\xff")
    assert read(yolo).file_names == before


def test_a_text_file_with_an_upper_case_suffix_is_not_ignored(yolo):
    path = write_lines(yolo, "day 1/b", "2 0.5 0.5 0.2 0.1")
    path.rename(path.with_suffix(".TXT"))
    with pytest.raises(
        DataError,
        match=r"b\.TXT belongs to no image of the split, but 'labels/day 1/b\.txt' would; rename it",
    ):
        read(yolo)


def test_if_all_classes_are_unknown_the_found_numbers_are_named(yolo):
    write_lines(yolo, "a", "7 0.5 0.5 0.2 0.1", "9 0.5 0.5 0.2 0.1")
    with pytest.raises(DataError, match=r"they have the class numbers \[7, 9\], but only 0 to 2 have names"):
        read(yolo, policy="skip")


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_a_missing_folder_gives_an_error_with_the_command_for_the_data(yolo, folder):
    (yolo / folder).rename(yolo / "elsewhere")
    with pytest.raises(DataError, match=rf"there is no folder .*{folder}: fetch it"):
        read(yolo, remedy="fetch it")


def test_the_cache_is_updated_when_text_files_images_or_names_change(yolo):
    def again():
        return read(yolo, cache=yolo / "cache")

    first = again()
    assert again().coco_dict() == first.coco_dict()
    write_image(yolo / "images" / "a.png", width=100)
    wider = again()
    assert wider.content_hash != first.content_hash and wider.boxes[0].tolist()[2] == pytest.approx(60)
    write_lines(yolo, "day 1/b", "2 0.5 0.5 0.2 0.1")
    assert again().labels.tolist() == [1, 0, 2]
    (yolo / "data.yaml").write_text("names: [cat, dog, owl]")
    assert again().category_names[2] == "owl"


LAYOUTS = {"images/train": "labels/train", "train/images": "train/labels", "images/images": "images/labels"}


@pytest.mark.parametrize(("split", "labels"), LAYOUTS.items())
def test_the_last_folder_images_is_replaced_by_labels(tmp_path, split, labels):
    write_image(tmp_path / split / "a.png")
    (tmp_path / labels).mkdir(parents=True)
    (tmp_path / labels / "a.txt").write_text("0 0.5 0.5 0.2 0.1")
    index = read_yolo(tmp_path, [split], classes=["cat"])
    assert index.file_names == [f"{split}/a.png"] and len(index.labels) == 1


def test_two_folders_are_one_split(tmp_path):
    for number, day in enumerate(("day1", "day2")):
        write_image(tmp_path / "images" / day / "a.png")
        write_lines(tmp_path, f"{day}/a", f"{number} 0.5 0.5 0.2 0.1")
    index = read_yolo(tmp_path, ["images/day2", "images/day1"], classes=["cat", "dog"])
    assert index.file_names == ["images/day2/a.png", "images/day1/a.png"] and index.labels.tolist() == [1, 0]
    assert index.image_ids.tolist() == [1, 2]


@pytest.mark.parametrize("split", ["train", "/images", "images/../../images"])
def test_a_split_without_an_image_folder_is_rejected(yolo, split):
    with pytest.raises(DataError, match="not a folder below dataset.root with a part 'images'"):
        read_yolo(yolo, [split])
