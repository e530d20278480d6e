"""Custom data sets in VOC and YOLO layout: the data that the commands read, and their errors about unknown classes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from afl.training.compose import compose_cell
from afl.training.data import read_data
from datasets import DataError
from scripts.prepare_data import main

XML = (
    "<annotation><size><width>50</width><height>40</height></size><object><name>{name}</name><bndbox>"
    "<xmin>11</xmin><ymin>21</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"
)


def voc(root: Path) -> Path:
    """A robin for training and a wren for validation, each in an image of 50 x 40 pixels."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for split, name in (("train", "robin"), ("val", "wren")):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{name} 1\n")
        (root / "Annotations" / f"{name} 1.xml").write_text(XML.format(name=name))
        cv2.imwrite(str(root / "JPEGImages" / f"{name} 1.png"), np.zeros((40, 50, 3), np.uint8))
    return root


def settings(kind: str, root: Path, *more: str) -> list[str]:
    return [
        f"dataset={kind}",
        "dataset.name=birds",
        f"dataset.root={root}",
        f"paths.cache={root}/cache",
        *more,
    ]


def read(overrides: list[str]):
    return read_data(compose_cell(detector="fcos", loss="afl", overrides=overrides))


def test_voc_files_give_their_classes_in_alphabetical_order_to_both_splits(tmp_path, capsys):
    overrides = settings("custom_voc", voc(tmp_path))
    data = read(overrides)
    assert list(data.train.category_names) == ["robin", "wren"] and data.val.labels.tolist() == [1]
    assert data.train.boxes.tolist() == [[10, 20, 20, 30]]
    assert data.train.file_names == ["JPEGImages/robin 1.png"]
    assert main(["check", *overrides]) == 0
    assert "1 image, 1 object, 2 classes" in capsys.readouterr().out


def test_the_given_order_of_classes_is_used_for_voc_files(tmp_path):
    data = read(settings("custom_voc", voc(tmp_path), "dataset.classes=[wren,owl,robin]"))
    assert list(data.train.category_names) == ["wren", "owl", "robin"]
    assert (data.train.labels.tolist(), data.val.labels.tolist()) == ([2], [0])


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_errors_about_unknown_voc_classes_list_the_classes_that_were_found(tmp_path, policy):
    overrides = settings("custom_voc", voc(tmp_path), "dataset.classes=[cat]", f"dataset.policy={policy}")
    with pytest.raises(DataError, match=r"set 'dataset.classes=\[robin\]', the classes that were found"):
        read(overrides)


def test_a_missing_voc_list_gives_an_error_with_the_setting_to_change(tmp_path):
    (voc(tmp_path) / "ImageSets" / "Main" / "val.txt").unlink()
    with pytest.raises(DataError, match=r"there is no file .*val\.txt: set dataset\.root"):
        read(settings("custom_voc", tmp_path))


def yolo(root: Path) -> Path:
    """The same objects as in ``voc``."""
    for split, label in (("train", 0), ("val", 1)):
        for part in ("images", "labels"):
            (root / part / split).mkdir(parents=True)
        (root / "labels" / split / "1.txt").write_text(f"{label} 0.3 0.625 0.2 0.25\n")
        cv2.imwrite(str(root / "images" / split / "1.png"), np.zeros((40, 50, 3), np.uint8))
    (root / "data.yaml").write_text("names:\n  0: robin\n  1: wren\n")
    return root


def test_yolo_files_give_the_same_data_as_voc_files(tmp_path, capsys):
    overrides = settings("custom_yolo", yolo(tmp_path / "yolo"))
    data, same = read(overrides), read(settings("custom_voc", voc(tmp_path / "voc")))
    for split in ("train", "val"):
        own, other = getattr(data, split), getattr(same, split)
        np.testing.assert_allclose(own.boxes, other.boxes, atol=1e-5)
        assert own.labels.tolist() == other.labels.tolist()
        assert list(own.category_names) == list(other.category_names) == ["robin", "wren"]
    assert main(["check", *overrides]) == 0
    assert "1 image, 1 object, 2 classes" in capsys.readouterr().out


def test_yolo_files_in_another_layout_only_need_their_folders(tmp_path):
    root = yolo(tmp_path)
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (root / split).mkdir(exist_ok=True)
            (root / part / split).rename(root / split / part)
    folders = ["dataset.train.splits=[train/images]", "dataset.val.splits=[val/images]"]
    data = read(settings("custom_yolo", root, *folders, "dataset.classes=[a,b]"))
    assert data.val.labels.tolist() == [1] and list(data.val.category_names) == ["a", "b"]
    with pytest.raises(DataError, match=r"there is no folder .*images/train: set dataset\.root"):
        read(settings("custom_yolo", root))
