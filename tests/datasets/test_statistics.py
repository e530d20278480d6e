"""Class statistics compared with manual counts and with LVIS's numbers."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from datasets import ClassStatistics, DataError, read_coco, read_lvis, require_usable_splits
from datasets.statistics import frequency_groups


def test_counts_equal_a_loop_over_the_file(shared_data):
    path = shared_data / "coco_sample" / "annotations" / "instances_train2017.json"
    statistics = ClassStatistics.from_index(read_coco(path, shared_data / "coco_sample" / "train2017"))
    content = json.loads(path.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    for name, instances, images, group in zip(
        statistics.names, statistics.instances, statistics.images, statistics.groups, strict=True
    ):
        found = [
            a["image_id"]
            for a in content["annotations"]
            if names[a["category_id"]] == name and not a["iscrowd"]
        ]
        assert instances == len(found) and images == len(set(found))
        assert group == ("r" if len(set(found)) <= 10 else "c" if len(set(found)) <= 100 else "f")


def test_lvis_uses_the_groups_of_its_files(shared_data, tmp_path):
    path = shared_data / "evaluators" / "lvis" / "lvis_val_100.json"
    content = json.loads(path.read_text())
    (tmp_path / "val2017").mkdir()
    content["images"], content["annotations"] = (
        content["images"][:5],
        [
            own
            for own in content["annotations"]
            if own["image_id"] in {image["id"] for image in content["images"][:5]}
        ],
    )
    path = tmp_path / "five.json"
    path.write_text(json.dumps(content))
    for image in content["images"]:
        black = np.zeros((image["height"], image["width"]), np.uint8)
        cv2.imwrite(str(tmp_path / "val2017" / image["coco_url"].rpartition("/")[2]), black)
    statistics = ClassStatistics.from_index(read_lvis(path, tmp_path))
    own = {category["name"]: category["frequency"] for category in content["categories"]}
    assert dict(zip(statistics.names, statistics.groups, strict=True)) == own
    # By the rule, all classes of this small sample would be rare or common.
    assert statistics.images.max() < 100 and "f" in statistics.groups


def test_ignored_objects_are_not_counted(write_coco, small_coco):
    index = read_coco(*write_coco(small_coco))
    assert ClassStatistics.from_index(index).instances.tolist() == [0, 2]
    index.difficult[2] = True
    statistics = ClassStatistics.from_index(index)
    assert statistics.instances.tolist() == [0, 1] and statistics.images.tolist() == [0, 1]
    np.testing.assert_array_equal(statistics.groups, ["r", "r"])


def test_the_groups_end_at_ten_and_a_hundred_images():
    assert frequency_groups(np.array([0, 10, 11, 100, 101])) == ["r", "r", "c", "c", "f"]


def test_splits_with_other_categories_are_rejected(write_coco, small_coco):
    train = read_coco(*write_coco(small_coco))
    small_coco["categories"][0]["name"] = "horse"
    val = read_coco(*write_coco(small_coco))
    require_usable_splits(train, train)
    with pytest.raises(DataError, match="category 90 is 'zebra' in .* but 'horse' in"):
        require_usable_splits(train, val)
