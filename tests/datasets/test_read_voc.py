"""The VOC reader compared with files written by hand and with the text of the XML files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from datasets import DataError, read_shapes, read_voc

XML = """<annotation><filename>wrong.jpg</filename><size><width>50</width><height>40</height><depth>3</depth></size>
<object><name>dog</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>50</xmax><ymax>40</ymax></bndbox>
<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part></object>
<object><name>cat</name><bndbox><xmin>11</xmin><ymin>21</ymin><xmax>12</xmax><ymax>30</ymax></bndbox></object></annotation>
"""


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two years and two images; the cat only occurs in the list of the second year."""
    for year, name in (("VOC2007", "000005"), ("VOC2012", "2008_000001")):
        folder = tmp_path / year
        for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (folder / part).mkdir(parents=True)
        (folder / "ImageSets" / "Main" / "trainval.txt").write_text(f"{name}  1\n\n")
        (folder / "Annotations" / f"{name}.xml").write_text(XML)
        cv2.imwrite(str(folder / "JPEGImages" / f"{name}.jpg"), np.zeros((40, 50, 3), np.uint8))
    first = tmp_path / "VOC2007" / "Annotations" / "000005.xml"
    first.write_text(XML.replace("cat", "dog"))
    return tmp_path


BOTH = ["VOC2007/trainval", "VOC2012/trainval"]


def test_two_years_equal_the_files_written_by_hand(voc):
    index = read_voc(voc, BOTH)
    assert list(index.category_names) == ["cat", "dog"]
    assert index.file_names == ["VOC2007/JPEGImages/000005.jpg", "VOC2012/JPEGImages/2008_000001.jpg"]
    assert index.heights.tolist() == [40, 40] and index.widths.tolist() == [50, 50]
    assert index.labels.tolist() == [1, 1, 1, 0] and index.difficult.tolist() == [True, False, True, False]
    # 1-based and inclusive: columns 1 to 50 are the whole image, columns 11 to 12 are two pixels wide.
    assert index.boxes.tolist() == [[0, 0, 50, 40], [10, 20, 12, 30]] * 2
    assert index.areas.tolist() == [2000, 20] * 2
    assert not index.has_masks
    ignored = [annotation["ignore"] for annotation in index.coco_dict()["annotations"]]
    assert ignored == [1, 0, 1, 0]


def test_selected_images_equal_a_list_with_only_these_images(voc):
    chosen = read_voc(voc, BOTH).select([1])
    expected = read_voc(voc, BOTH[1:])
    assert chosen.file_names == expected.file_names
    for name in ("boxes", "areas", "difficult", "labels", "heights", "widths"):
        assert getattr(chosen, name).tolist() == getattr(expected, name).tolist() != []


def test_given_classes_keep_their_order(voc):
    index = read_voc(voc, BOTH, classes=["dog", "horse", "cat"])
    assert list(index.category_names) == ["dog", "horse", "cat"] and index.labels.tolist() == [0, 0, 0, 2]


def test_blood_cells_equal_the_text_of_their_files(shared_data):
    folder = shared_data / "bccd"
    index = read_voc(folder, ["train"], policy="skip")
    names = (folder / "ImageSets" / "Main" / "train.txt").read_text().split()
    assert list(index.category_names) == ["Platelets", "RBC", "WBC"]
    assert [Path(name).stem for name in index.file_names] == names
    assert index.defects["degenerate_box"].count == 1
    assert "BloodImage_00343.xml: object" in index.defects["degenerate_box"].examples[0]
    for i, name in enumerate(names):
        text = (folder / "Annotations" / f"{name}.xml").read_text()
        boxes = [list(map(int, found)) for found in re.findall(
            r"<xmin>(\d+)</xmin>\s*<ymin>(\d+)</ymin>\s*<xmax>(\d+)</xmax>\s*<ymax>(\d+)</ymax>", text)]  # fmt: skip
        expected = [[x1 - 1, y1 - 1, x2, y2] for x1, y1, x2, y2 in boxes if x2 > x1 and y2 > y1]
        assert index.boxes[index.annotations(i)].tolist() == expected


def test_blood_cells_stop_at_the_first_defect_by_default(shared_data):
    with pytest.raises(DataError, match=r"BloodImage_00343\.xml: object 4 has a box without area, xmin 181"):
        read_voc(shared_data / "bccd", ["train"])


def test_shapes_in_whole_pixels_are_within_half_a_pixel_of_the_exact_boxes(shapes_folder):
    voc, coco = (read_shapes(shapes_folder, split="val", annotation_format=form) for form in ("voc", "coco"))
    assert [Path(name).name for name in voc.file_names] == coco.file_names
    np.testing.assert_array_equal(voc.offsets, coco.offsets)
    assert np.abs(voc.boxes - coco.boxes).max() <= 0.51
    names = np.asarray(voc.category_names)[voc.labels], np.asarray(coco.category_names)[coco.labels]
    np.testing.assert_array_equal(*names)


DEFECTS = [
    ("<xmin>11</xmin>", "<xmin>12</xmin>", "degenerate_box", "object 2 has a box without area"),
    ("<ymin>21</ymin>", "<ymin>30</ymin>", "degenerate_box", "object 2 has a box without area"),
    ("<xmin>11</xmin>", "<xmin>many</xmin>", "bad_field", "object 2 has bndbox/xmin = 'many', not a number"),
    ("<xmin>11</xmin>", "", "missing_field", "object 2 has no 'bndbox/xmin'"),
    ("<xmax>12</xmax>", "<xmax>99</xmax>", "box_sticks_out", "object 2 has a box that sticks out"),
    ("<name>cat</name>", "<name>cow</name>", "unknown_category", "object 2 has the class name 'cow'"),
    ("<width>50</width>", "<width>0</width>", "bad_image_size", "has width = 0"),
    ("<width>50</width>", "", "missing_field", "has no 'size/width'"),
    ("</annotation>", "", "broken_xml", "cannot be read as XML"),
    (
        "<annotation>",
        '<?xml version="1.0" encoding="klingon"?><annotation>',
        "broken_xml",
        "cannot be read as XML",
    ),
]


@pytest.mark.parametrize(("old", "new", "kind", "message"), DEFECTS)
def test_each_defect_gives_one_clear_error_or_is_counted(voc, old, new, kind, message):
    path = voc / "VOC2012" / "Annotations" / "2008_000001.xml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message) as caught:
        read_voc(voc, BOTH, classes=["cat", "dog"])
    assert str(path) in str(caught.value)
    index = read_voc(voc, BOTH, classes=["cat", "dog"], policy="skip")
    assert index.defects[kind].count == 1 and message in index.defects[kind].examples[0]
    assert index.boxes[index.annotations(0)].tolist() == [[0, 0, 50, 40], [10, 20, 12, 30]]


def test_missing_files_are_named_or_counted(voc):
    (voc / "VOC2012" / "Annotations" / "2008_000001.xml").unlink()
    with pytest.raises(DataError, match=r"2008_000001\.xml does not exist"):
        read_voc(voc, BOTH)
    (voc / "VOC2007" / "JPEGImages" / "000005.jpg").unlink()
    index = read_voc(voc, BOTH, policy="skip")
    assert len(index) == 0
    assert {kind: defect.count for kind, defect in index.defects.items()} == {
        "missing_annotations": 1,
        "missing_image": 1,
    }


@pytest.mark.parametrize("stored", ["2008_000001.XML", "2008_000001.Xml"])
def test_a_missing_xml_file_with_almost_the_same_name_is_pointed_out(voc, stored):
    path = voc / "VOC2012" / "Annotations" / "2008_000001.xml"
    path.rename(path.with_name(stored))
    message = (
        f"{path} does not exist, but 'VOC2012/Annotations/{stored}' does; rename it, or correct the list"
    )
    for classes in (None, ["cat", "dog"]):
        with pytest.raises(DataError, match=re.escape(message)):
            read_voc(voc, BOTH, classes=classes)


def test_a_missing_image_with_almost_the_same_name_is_pointed_out(voc):
    path = voc / "VOC2012" / "JPEGImages" / "2008_000001.jpg"
    path.rename(path.with_name("2008_000001.JPG"))
    assert read_voc(voc, BOTH).file_names[1] == "VOC2012/JPEGImages/2008_000001.JPG"
    for part, end in (("Annotations", ".xml"), ("ImageSets/Main", ".txt")):
        file = voc / "VOC2007" / part / (f"000005{end}" if end == ".xml" else f"trainval{end}")
        if end == ".xml":
            file.rename(file.with_name("dog.xml"))
        else:
            file.write_text("dog\n")
    image = voc / "VOC2007" / "JPEGImages" / "000005.jpg"
    image.rename(image.with_name("Dog.JPG"))
    with pytest.raises(
        DataError, match=r"dog\.jpg \(id 1\) does not exist, but 'VOC2007/JPEGImages/Dog\.JPG' does"
    ):
        read_voc(voc, BOTH)


def test_an_image_listed_twice_is_a_defect(voc):
    (voc / "VOC2007" / "ImageSets" / "Main" / "trainval.txt").write_text("000005\n000005\n")
    with pytest.raises(DataError, match=r"000005\.xml is listed twice"):
        read_voc(voc, BOTH)
    assert len(read_voc(voc, BOTH, policy="skip")) == 2


def own_voc(
    root: Path, names: list[str], suffix: str = ".jpg", lines: str | None = None, xml: str = XML
) -> Path:
    """A data set in one folder with these images in the list ``train``."""
    for name in names:
        for part, end in (("Annotations", ".xml"), ("JPEGImages", suffix)):
            (root / part / name).parent.mkdir(parents=True, exist_ok=True)
            if part == "Annotations":
                (root / part / f"{name}{end}").write_text(xml)
            else:
                cv2.imwrite(str(root / part / f"{name}{end}"), np.zeros((40, 50, 3), np.uint8))
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text(
        lines if lines is not None else "".join(f"{name}\n" for name in names), encoding="utf-8"
    )
    return root


LINES = {
    "spaces in a name": (["photo 2", "photo"], "photo 2\n"),
    "a name that ends like a class list": (["photo 1", "photo"], "photo 1\n"),
    "class list": (["photo", "other"], "photo  1\n"),
    "class list, absent": (["photo", "other"], "photo -1\n"),
    "byte order mark": (["photo"], "\ufeffphoto\n"),
    "carriage returns": (["photo"], "photo\r\n"),
    "suffix of the image": (["photo"], "photo.jpg\n"),
    "suffix of the annotations": (["photo.v2"], "photo.v2.xml\n"),
    "subfolder": (["day 1/photo", "day 2/photo"], "day 1/photo\n"),
    "no letters of ASCII": (["Zürich 猫"], "Zürich 猫\n"),
}


@pytest.mark.parametrize(("names", "lines"), LINES.values(), ids=LINES)
def test_a_line_of_a_list_names_the_first_image(tmp_path, names, lines):
    index = read_voc(own_voc(tmp_path, names, lines=lines), ["train"], classes=["cat", "dog"])
    assert index.file_names == [f"JPEGImages/{names[0]}.jpg"] and index.labels.tolist() == [1, 0]


@pytest.mark.parametrize("suffix", [".webp", ".tif", ".TIFF", ".gif", ".bmp", ".PNG"])
@pytest.mark.parametrize("name", ["photo", "day 1/photo"])
def test_images_of_every_format_and_in_subfolders_are_found(tmp_path, suffix, name):
    index = read_voc(own_voc(tmp_path, [name], suffix), ["train"])
    assert index.file_names == [f"JPEGImages/{name}{suffix}"]


def test_the_file_name_in_the_annotations_finds_and_distinguishes_images(tmp_path):
    root = own_voc(tmp_path, ["photo"])
    folder = root / "JPEGImages"
    (folder / "photo.jpg").rename(folder / "wrong.jpg")
    assert read_voc(root, ["train"]).file_names == ["JPEGImages/wrong.jpg"]
    for name in ("photo.jpg", "photo.png"):
        cv2.imwrite(str(folder / name), np.zeros((40, 50, 3), np.uint8))
    with pytest.raises(
        DataError, match=r"photo\.xml has more than one image: photo\.jpg, photo\.png; remove all but one"
    ):
        read_voc(root, ["train"])
    path = root / "Annotations" / "photo.xml"
    path.write_text(XML.replace("wrong.jpg", "photo.png"))
    assert read_voc(root, ["train"]).file_names == ["JPEGImages/photo.png"]


def test_a_list_cannot_name_files_outside_the_folder(tmp_path):
    root = own_voc(tmp_path / "set", ["photo"], lines="../../photo\n")
    with pytest.raises(DataError, match="is outside the image folder: '../../photo'"):
        read_voc(root, ["train"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            [1, 2],
            r"dataset.classes has 1, which is read as a number, not as a text: write it in quotes, '\"1\"' on",
        ),
        ([True], r"dataset.classes has True, which is read as a truth value.*'\"true\"'"),
        (["cat", None], r"dataset.classes has None, which is read as null"),
        ("cat", r"dataset.classes is 'cat', not a list; write dataset.classes=\[cat\]"),
        (["cat", "cat"], "dataset.classes has 'cat' twice, as classes 0 and 1"),
        (["cat", "\x1b[2J"], "dataset.classes has the class name .* that cannot be written"),
        ([], "dataset.classes is empty"),
    ],
)
def test_errors_about_invalid_class_names_show_the_right_form(voc, classes, message):
    for policy in ("error", "skip"):
        with pytest.raises(DataError, match=message):
            read_voc(voc, BOTH, classes=classes, policy=policy)


def test_numbers_in_quotes_are_class_names(tmp_path):
    root = own_voc(tmp_path, ["photo"], xml=XML.replace("dog", "1").replace("cat", "02"))
    index = read_voc(root, ["train"], classes=["1", "02"])
    assert index.labels.tolist() == [0, 1] and list(index.category_names) == ["1", "02"]
    assert list(read_voc(root, ["train"]).category_names) == ["02", "1"]


def test_the_error_about_a_numeric_split_shows_the_right_form(voc):
    with pytest.raises(DataError, match="the list of splits has 2024, which is read as a number"):
        read_voc(voc, [2024])


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_if_all_classes_are_unknown_the_found_ones_are_named(voc, policy):
    with pytest.raises(DataError, match=r"set 'dataset.classes=\[cat,dog\]', the classes that were found"):
        read_voc(voc, BOTH, classes=["aeroplane", "bicycle"], policy=policy)


@pytest.mark.parametrize(
    "name", ["it's", 'a "cat"', "a, b", "a=b", "null", "True", "vögel", "[m6]", "a\\", " x"]
)
def test_the_setting_with_the_found_classes_can_be_pasted_into_a_shell(tmp_path, name):
    """The shell's and Hydra's own parsers read the text of the message."""
    xml = XML.replace("<name>dog", f"<name>{escape(name)}").replace("<name>cat", "<name>02")
    with pytest.raises(DataError) as caught:
        read_voc(own_voc(tmp_path, ["photo"], xml=xml), ["train"], classes=["aeroplane"])
    (word,) = shlex.split(str(caught.value).partition("; set ")[2].rpartition(", the classes")[0])
    read = OverridesParser.create().parse_override(word)
    assert read.key_or_group == "dataset.classes" and read.value() == sorted([name.strip(), "02"])


def test_a_folder_without_objects_has_no_classes(tmp_path):
    root = own_voc(tmp_path, ["photo"], xml=XML.partition("<object>")[0] + "</annotation>")
    with pytest.raises(
        DataError, match="no annotation of .*train.txt has an object with a class name; add the objects"
    ):
        read_voc(root, ["train"])


def test_a_list_without_classes_gives_the_reason(tmp_path):
    root = own_voc(tmp_path, ["photo"])
    (root / "Annotations").rename(root / "annotations")
    with pytest.raises(DataError, match="has no folder Annotations; put the XML files of .*train.txt there"):
        read_voc(root, ["train"], policy="skip")
    (root / "annotations").rename(root / "Annotations")
    (root / "Annotations" / "photo.xml").write_text(XML.replace("<annotation>", '<annotation xmlns="urn:x">'))
    with pytest.raises(
        DataError, match="no annotation of .* the first bad record: .*photo.xml has no 'size/width'"
    ):
        read_voc(root, ["train"], policy="skip")
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n")
    with pytest.raises(DataError, match="train.txt has no image names"):
        read_voc(root, ["train"], policy="skip")


def test_the_cache_is_updated_when_xml_files_change(voc, tmp_path):
    first = read_voc(voc, BOTH, cache=tmp_path / "cache")
    assert read_voc(voc, BOTH, cache=tmp_path / "cache").coco_dict() == first.coco_dict()
    path = voc / "VOC2012" / "Annotations" / "2008_000001.xml"
    path.write_text(path.read_text().replace("<xmax>12</xmax>", "<xmax>15</xmax>"))
    assert read_voc(voc, BOTH, cache=tmp_path / "cache").boxes[3].tolist() == [10, 20, 15, 30]


@pytest.mark.parametrize("classes", [None, ["dog", "cat"]])
def test_renamed_xml_files_change_the_content(tmp_path, classes):
    root, cache = own_voc(tmp_path, ["a", "b", "c"]), tmp_path / "cache"
    place = root / "Annotations"
    for name, start in (("a", 1), ("b", 2), ("c", 3)):
        (place / f"{name}.xml").write_text(XML.replace("<xmin>1</xmin>", f"<xmin>{start}</xmin>"))
    first = read_voc(root, ["train"], classes=classes, cache=cache)
    (place / "a.xml").rename(place / "z.xml")
    (place / "b.xml").rename(place / "a.xml")
    (place / "z.xml").rename(place / "b.xml")
    second = read_voc(root, ["train"], classes=classes, cache=cache)
    assert first.boxes[::2, 0].tolist() == [0, 1, 2] and second.boxes[::2, 0].tolist() == [1, 0, 2]
    assert second.content_hash != first.content_hash
    (place / "c.xml").rename(place / "d.xml")
    with pytest.raises(DataError, match="c.xml does not exist"):
        read_voc(root, ["train"], classes=classes, cache=cache)


def test_a_missing_list_gives_an_error_with_the_command_for_the_data(voc):
    with pytest.raises(DataError, match=r"there is no file .*test\.txt: fetch it"):
        read_voc(voc, ["VOC2007/test"], remedy="fetch it")
