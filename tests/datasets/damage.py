"""Random damage to JSON, XML and image files, and the requirements on readers of these files."""

from __future__ import annotations

import copy
import json
import math
import signal
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from hypothesis import strategies as st

from datasets import AnnotationIndex, DataError, DetectionDataset, FixedTransform, read_image

PATIENCE_SECONDS = 20
LONGEST_MESSAGE = 700

# Values that a broken exporter, a wrong cast or a careless edit produces.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 120),
    st.sampled_from([2**31, 2**63, 10**30, -(10**9), 1e300, -1e-300, 0.5, math.nan, math.inf, -math.inf]),
    st.floats(-50, 150),
    st.text(max_size=6),
    st.sampled_from(
        ["../../etc/passwd", "/etc/passwd", "a.jpg\0", "missing.jpg", "1e3", "NaN", "\ud800"[:0]]
    ),
    st.lists(st.integers(-5, 50), max_size=9),
    st.lists(st.lists(st.floats(-5, 50), max_size=9), max_size=2),
    st.dictionaries(st.sampled_from(["size", "counts", "id", "name"]), st.integers(0, 50), max_size=3),
    st.fixed_dictionaries(
        {"size": st.just([30, 40]), "counts": st.text("0123456789:;<=>?@ABCPQo`", max_size=8)}
    ),
)


@st.composite
def byte_damage(draw, data: bytes) -> bytes:
    """The bytes truncated, overwritten, or with a part removed, doubled or inserted."""
    start = draw(st.integers(0, len(data)))
    length = draw(st.integers(1, 40))
    kind = draw(st.sampled_from(["cut", "flip", "remove", "double", "insert", "zero", "swap"]))
    if kind == "cut":
        return data[:start]
    if kind == "flip":
        changed = bytearray(data)
        for _ in range(draw(st.integers(1, 4))):
            changed[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed)
    if kind == "remove":
        return data[:start] + data[start + length :]
    if kind == "double":
        return data[:start] + data[start : start + length] + data[start:]
    if kind == "zero":
        return data[:start] + bytes(min(length, len(data) - start)) + data[start + length :]
    if kind == "swap":
        return data[start:] + data[:start]
    return data[:start] + draw(st.binary(min_size=1, max_size=12)) + data[start:]


@st.composite
def value_damage(draw, content: dict) -> dict:
    """A JSON document in which one to three values are replaced, removed, renamed or repeated."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(content))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat", "rename"]))
        if kind == "replace":
            holder[key] = copy.deepcopy(draw(VALUES))
        elif kind == "remove":
            del holder[key]
        elif kind == "repeat" and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == "rename" and isinstance(holder, dict):
            holder[str(key) + "_"] = holder.pop(key)
    return content


def _places(value: object) -> Iterator[tuple[dict | list, str | int]]:
    """The places of all values in a JSON document."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


@st.composite
def element_damage(draw, text: bytes) -> bytes:
    """An XML document in which elements, their text or their children are removed, changed or repeated."""
    root = ElementTree.fromstring(text)
    for _ in range(draw(st.integers(1, 3))):
        pairs = [(parent, child) for parent in root.iter() for child in parent]
        if not pairs:
            break
        parent, child = draw(st.sampled_from(pairs))
        kind = draw(st.sampled_from(["text", "text", "text", "remove", "repeat", "rename", "empty"]))
        if kind == "text":
            odd = [
                "",
                " ",
                "nan",
                "inf",
                "-3",
                "0",
                "7",
                "1e99",
                "12.5",
                "zebra",
                "ant",
                "10 ",
                "0x10",
                "1_0",
            ]
            child.text = draw(st.sampled_from(odd))
        elif kind == "remove":
            parent.remove(child)
        elif kind == "repeat":
            parent.append(copy.deepcopy(child))
        elif kind == "rename":
            child.tag += "s"
        else:
            for grandchild in list(child):
                child.remove(grandchild)
    return ElementTree.tostring(root)


@contextmanager
def no_hang() -> Iterator[None]:
    """Raise an error if the body exceeds the time limit."""

    def ring(number, frame):
        raise TimeoutError(f"reading took longer than {PATIENCE_SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read_or_refusal(
    read: Callable[[str], AnnotationIndex], policy: str, folder: Path
) -> AnnotationIndex | None:
    """The result of the reader; None if it raises a one-line error that names a file in ``folder``. Other errors fail the test."""
    try:
        with no_hang():
            index = read(policy)
            for i in range(len(index)):
                _use(index, i)
            return index
    except DataError as error:
        message = str(error)
        assert "\n" not in message and len(message) < LONGEST_MESSAGE, message
        assert str(folder) in message, message
        return None


def _use(index: AnnotationIndex, i: int) -> None:
    """Do everything that training does with an image and its annotations."""
    source = "masks" if index.has_masks else None
    dataset = DetectionDataset(index, FixedTransform(flip=1.0), extreme_source=source)
    sample = dataset[0, i]
    assert np.isfinite(sample.boxes).all() and (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
    assert ((sample.labels >= 0) & (sample.labels < index.num_classes)).all()


def assert_nothing_is_lost_silently(index: AnnotationIndex, content: dict) -> None:
    """Assert that an index without reported defects contains every record of the file unchanged."""
    assert not index.defects
    images, annotations = content["images"], content["annotations"]
    categories = sorted(content["categories"], key=lambda record: record["id"])
    assert index.image_ids.tolist() == [record["id"] for record in images]
    assert index.widths.tolist() == [record["width"] for record in images]
    assert index.heights.tolist() == [record["height"] for record in images]
    assert list(index.category_names) == [record["name"] for record in categories]
    assert index.category_ids.tolist() == [record["id"] for record in categories]
    order = {record["id"]: i for i, record in enumerate(images)}
    annotations = sorted(annotations, key=lambda record: order[record["image_id"]])
    assert index.annotation_ids.tolist() == [record["id"] for record in annotations]
    assert index.category_ids[index.labels].tolist() == [record["category_id"] for record in annotations]
    expected = [[x, y, x + w, y + h] for x, y, w, h in (record["bbox"] for record in annotations)]
    np.testing.assert_array_equal(index.boxes, np.asarray(expected, np.float32).reshape(-1, 4))
    assert index.crowd.tolist() == [bool(record.get("iscrowd", 0)) for record in annotations]


def assert_what_is_missing_was_reported(index: AnnotationIndex, content: dict) -> None:
    """Assert that every record of a file with defects is in the index or counted as a defect."""
    reported = sum(defect.count for defect in index.defects.values())
    missing_images = len(content["images"]) - len(index)
    kept = {int(number) for number in index.image_ids}
    # Annotations of a category that was left out are counted with the category.
    listed = [_integer(c.get("id")) for c in content["categories"] if isinstance(c, dict)]
    left_out = {number for number in listed if number not in index.category_ids.tolist()}
    of_kept = [
        r
        for r in content["annotations"]
        if isinstance(r, dict)
        and _integer(r.get("image_id")) in kept
        and _integer(r.get("category_id")) not in left_out
    ]
    missing = max(0, len(of_kept) - len(index.annotation_ids)) + missing_images
    missing += len(content["categories"]) - index.num_classes
    assert missing <= reported, index.defects
    objects = [record for record in content["annotations"] if isinstance(record, dict)]
    cut = 0
    for number, box in zip(index.annotation_ids.tolist(), index.boxes, strict=True):
        candidates = [
            record["bbox"] for record in objects if _integer(record.get("id")) == number and "bbox" in record
        ]
        cut += not any(np.array_equal(box, _corners(bbox)) for bbox in candidates)
    assert cut == 0 or cut <= index.defects["box_sticks_out"].count


def _corners(bbox: object) -> np.ndarray | None:
    try:
        x, y, w, h = bbox
        return np.asarray([x, y, x + w, y + h], np.float32)
    except (TypeError, ValueError):
        return None


def _integer(value: object) -> int | None:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return int(value) if whole and not isinstance(value, bool) else None


def check_image(index: AnnotationIndex, i: int, truth: np.ndarray | None) -> None:
    """Assert that image i gives a one-line error, or has the right size and, if its format has checksums, the pixels ``truth``."""
    try:
        with no_hang():
            pixels = read_image(index, i)
    except DataError as error:
        assert str(index.image_path(i)) in str(error) and "\n" not in str(error)
        return
    assert pixels.shape == (index.heights[i], index.widths[i], 3) and pixels.dtype == np.uint8
    if truth is not None:
        np.testing.assert_array_equal(pixels, truth)


def write_images(root: Path) -> None:
    """``a.jpg`` of 40 x 30 and ``b.png`` of 20 x 20 pixels."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / "a.jpg"), rng.integers(0, 255, (30, 40, 3), dtype=np.uint8))
    cv2.imwrite(str(root / "b.png"), rng.integers(0, 255, (20, 20, 3), dtype=np.uint8))


def coco_content() -> dict:
    """Two images with four objects: a polygon, a run-length mask, a crowd region and a box without a mask."""
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.png", "width": 20, "height": 20},
        ],
        "annotations": [
            {"id": 11, "image_id": 3, "category_id": 90, "bbox": [1, 2, 10, 8], "area": 60.5, "iscrowd": 0},
            {"id": 12, "image_id": 7, "category_id": 2, "bbox": [0, 0, 40, 30], "area": 900, "iscrowd": 1},
            {
                "id": 13, "image_id": 7, "category_id": 90, "bbox": [5, 5, 10, 10], "area": 50, "iscrowd": 0,
                "segmentation": [[5, 5, 15, 5, 10, 15]],
            },
            {
                "id": 14, "image_id": 3, "category_id": 2, "bbox": [0, 0, 2, 20], "area": 40, "iscrowd": 0,
                "segmentation": {"size": [20, 20], "counts": [0, 40, 360]},
            },
        ],
        "categories": [{"id": 90, "name": "zebra"}, {"id": 2, "name": "ant"}],
    }  # fmt: skip


def lvis_content() -> dict:
    """The same content in LVIS's format."""
    content = coco_content()
    for image in content["images"]:
        image["coco_url"] = f"http://images/{image.pop('file_name')}"
        image |= {"neg_category_ids": [2], "not_exhaustive_category_ids": [90]}
    for category in content["categories"]:
        category["frequency"] = "c"
    return content


VOC_XML = b"""<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>zebra</name><difficult>0</difficult><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>12</xmax><ymax>20</ymax></bndbox></object>
<object><name>ant</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax></bndbox></object>
</annotation>"""


def parsed(data: bytes) -> dict | None:
    """The JSON object in the bytes, or None."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
