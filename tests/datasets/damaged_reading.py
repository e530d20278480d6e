"""Passes damaged files to the readers; used with few examples and with many."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from datasets import read_coco, read_image, read_lvis, read_voc
from tests.datasets.damage import (
    VOC_XML,
    assert_nothing_is_lost_silently,
    assert_what_is_missing_was_reported,
    byte_damage,
    check_image,
    coco_content,
    element_damage,
    lvis_content,
    parsed,
    read_or_refusal,
    value_damage,
    write_images,
)

COCO, LVIS = (
    st.one_of(
        value_damage(content).map(lambda damaged: json.dumps(damaged).encode()),
        byte_damage(json.dumps(content).encode()),
    )
    for content in (coco_content(), lvis_content())
)
XML = st.one_of(element_damage(VOC_XML), byte_damage(VOC_XML))


class JsonFolder:
    """A folder with two images and one annotation file that is damaged."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.path, self.lvis = folder / "annotations.json", kind == "lvis"
        root = folder / "root"
        write_images(root / "images" if self.lvis else root)
        self.read = partial(read_lvis if self.lvis else read_coco, self.path, root)
        self.path.write_text(json.dumps(lvis_content() if self.lvis else coco_content()))
        assert len(self.read(policy="error").labels) == 4

    def check(self, data: bytes) -> None:
        """Read the damaged file under both policies."""
        self.path.write_bytes(data)
        content = parsed(data)
        strict = read_or_refusal(lambda policy: self.read(policy=policy), "error", self.path.parent)
        if strict is not None:
            assert_nothing_is_lost_silently(strict, content)
        lenient = read_or_refusal(lambda policy: self.read(policy=policy), "skip", self.path.parent)
        if lenient is not None:
            assert_what_is_missing_was_reported(lenient, content)
        assert lenient is not None or strict is None
        if strict is None and lenient is not None:
            assert lenient.defects, "refused under one policy, without a defect under the other"


class XmlFolder:
    """A VOC folder of one image whose annotations are damaged."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        write_images(folder / "JPEGImages")
        for name in ("Annotations", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        (folder / "ImageSets/Main/train.txt").write_text("a\n")
        self.path = folder / "Annotations/a.xml"

    def check(self, data: bytes) -> None:
        self.path.write_bytes(data)

        def read(policy: str):
            return read_voc(self.root, ["train"], classes=["ant", "zebra"], policy=policy)

        strict = read_or_refusal(read, "error", self.root)
        if strict is not None:
            root = ElementTree.fromstring(data)
            assert not strict.defects
            assert strict.widths.tolist() == [float(root.findtext("size/width"))]
            objects = root.findall("object")
            assert [strict.category_names[label] for label in strict.labels] == [
                element.findtext("name").strip() for element in objects
            ]
            sides = [
                [float(e.findtext(f"bndbox/{s}")) for s in ("xmin", "ymin", "xmax", "ymax")] for e in objects
            ]
            expected = np.asarray(sides, np.float32).reshape(-1, 4) - np.float32([1, 1, 0, 0])
            np.testing.assert_array_equal(strict.boxes, expected)
        lenient = read_or_refusal(read, "skip", self.root)
        if strict is None and lenient is not None:
            assert lenient.defects


class ImageFolder:
    """A JPEG and a PNG that are damaged."""

    def __init__(self, folder: Path) -> None:
        write_images(folder / "root")
        path = folder / "annotations.json"
        path.write_text(json.dumps(coco_content()))
        self.index = read_coco(path, folder / "root")
        self.whole = [self.index.image_path(i).read_bytes() for i in range(2)]
        self.pixels = [read_image(self.index, i) for i in range(2)]

    def check(self, i: int, data: bytes) -> None:
        """Read the damaged image i; damage to a PNG is always detected, because its chunks have checksums."""
        self.index.image_path(i).write_bytes(data)
        check_image(self.index, i, self.pixels[i] if i == 1 else None)
