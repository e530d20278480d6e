"""The COCO reader compared with pycocotools, and the message of every defect."""

from __future__ import annotations

import json
import logging
import os
import re
from contextlib import redirect_stdout
from copy import deepcopy
from io import StringIO

import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from datasets import DataError, coco, read_coco
from datasets.extreme_points import extreme_points_of_mask


def official(path) -> COCO:
    with redirect_stdout(StringIO()):
        return COCO(str(path))


def assert_equals_pycocotools(index, coco: COCO) -> None:
    categories = coco.loadCats(sorted(coco.getCatIds()))
    assert list(index.category_names) == [category["name"] for category in categories]
    assert sorted(index.image_ids.tolist()) == sorted(coco.getImgIds())
    for i, image_id in enumerate(index.image_ids.tolist()):
        image = coco.loadImgs(image_id)[0]
        assert index.file_names[i] == image["file_name"]
        assert (index.heights[i], index.widths[i]) == (image["height"], image["width"])
        expected = {annotation["id"]: annotation for annotation in coco.loadAnns(coco.getAnnIds([image_id]))}
        chosen = index.annotations(i)
        assert index.annotation_ids[chosen].tolist() == list(expected)
        for a in range(chosen.start, chosen.stop):
            annotation = expected[int(index.annotation_ids[a])]
            x, y, w, h = annotation["bbox"]
            np.testing.assert_allclose(index.boxes[a], [x, y, x + w, y + h], rtol=1e-6, atol=1e-4)
            assert index.category_ids[index.labels[a]] == annotation["category_id"]
            assert index.crowd[a] == bool(annotation["iscrowd"])
            np.testing.assert_allclose(index.areas[a], annotation["area"], rtol=1e-6)


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_index_of_real_images_equals_pycocotools(shared_data, split):
    path = shared_data / "coco_sample" / "annotations" / f"instances_{split}.json"
    index = read_coco(path, shared_data / "coco_sample" / split)
    assert index.num_classes == 80 and index.crowd.any()
    assert_equals_pycocotools(index, official(path))


def test_index_of_shapes_equals_pycocotools(shapes_folder):
    path = shapes_folder / "coco" / "val.json"
    index = read_coco(path, shapes_folder / "JPEGImages")
    assert_equals_pycocotools(index, official(path))


def test_coco_dict_equals_the_file_for_pycocotools(shared_data):
    path = shared_data / "coco_sample" / "annotations" / "instances_val2017.json"
    truth = official(path)
    content = read_coco(path, shared_data / "coco_sample" / "val2017").coco_dict()
    assert {c["id"]: c["name"] for c in content["categories"]} == {
        c["id"]: c["name"] for c in truth.dataset["categories"]
    }
    assert sorted(image["id"] for image in content["images"]) == sorted(truth.getImgIds())
    assert len(content["annotations"]) == len(truth.anns)
    for annotation in content["annotations"]:
        expected = truth.anns[annotation["id"]]
        for key in ("image_id", "category_id", "iscrowd"):
            assert annotation[key] == expected[key]
        np.testing.assert_allclose(annotation["bbox"], expected["bbox"], atol=1e-12)
        assert annotation["area"] == expected["area"]
    json.dumps(content)


def test_boxes_and_areas_keep_all_digits_of_the_file(write_coco, small_coco):
    for number, annotation in enumerate(small_coco["annotations"]):
        annotation |= {"bbox": [1.01 + number, 2.37, 7.13, 9.91], "area": 33.333333333}
    index = read_coco(*write_coco(small_coco))
    kept = {annotation["id"]: annotation for annotation in index.coco_dict()["annotations"]}
    for annotation in small_coco["annotations"]:
        own = kept[annotation["id"]]
        assert (
            own["bbox"] == pytest.approx(annotation["bbox"], abs=1e-12) and own["area"] == annotation["area"]
        )


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_equal_pycocotools_masks(write_coco, small_coco, compressed):
    rng = np.random.default_rng(3)
    for case in range(20):
        mask = np.zeros((20, 20), dtype=np.uint8, order="F")
        y, x = rng.integers(0, 15, size=2)
        mask[y : y + 5, x : x + 4] = rng.random((5, 4)) < (0.5 if case else 1.0)
        mask[y + 2, x + 2] = 1
        rle = mask_api.encode(mask)
        rle["counts"] = rle["counts"].decode()
        if not compressed:
            runs = [[value, 1] for value in mask.ravel(order="F").tolist()]
            merged = [[0, 0]]
            for value, length in runs:
                if value == merged[-1][0]:
                    merged[-1][1] += length
                else:
                    merged.append([value, length])
            rle["counts"] = [length for _, length in merged]
        small_coco["annotations"][0]["segmentation"] = rle
        index = read_coco(*write_coco(small_coco))
        points = index.extreme_points[index.annotation_ids.tolist().index(11)]
        np.testing.assert_array_equal(points, extreme_points_of_mask(mask))


def test_classes_are_numbered_by_category_id_and_annotations_sorted_by_image(write_coco, small_coco):
    index = read_coco(*write_coco(small_coco))
    assert index.category_ids.tolist() == [2, 90] and list(index.category_names) == ["ant", "zebra"]
    assert index.image_ids.tolist() == [7, 3]
    assert index.annotation_ids.tolist() == [12, 13, 11] and index.labels.tolist() == [0, 1, 1]
    assert index.offsets.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(index.extreme_points[1], [[10, 5], [5, 5], [10, 15], [15, 5]])
    assert np.isnan(index.extreme_points[[0, 2]]).all()


def change(path: str, value: object):
    """Change one field such as ``annotations.0.bbox``; DELETE removes it."""

    def apply(content: dict) -> None:
        *parents, last = path.split(".")
        target = content
        for key in parents:
            target = target[int(key)] if isinstance(target, list) else target[key]
        last = int(last) if isinstance(target, list) else last
        if value == "DELETE":
            del target[last]
        else:
            target[last] = value

    return apply


DEFECTS = [
    ("annotations.0.bbox", [1, 2, 0, 8], "degenerate_box", "annotation 11 has a box without area"),
    ("annotations.0.bbox", [0, 2, 1e-30, 8], "degenerate_box", "annotation 11 has a box without area"),
    ("annotations.0.bbox", [1, 2, 5, -8], "degenerate_box", "annotation 11 has a box without area"),
    ("annotations.0.bbox", [25, 2, 5, 5], "box_outside_image", "annotation 11 has a box outside its image of 20 x 20"),
    ("annotations.0.bbox", [15, 2, 9, 5], "box_sticks_out", "annotation 11 has a box that sticks out"),
    ("annotations.0.bbox", [1, 2, 3], "bad_field", r"annotation 11 has bbox = \[1, 2, 3\], not 4 finite numbers"),
    ("annotations.0.bbox", [1, 2, 3, "4"], "bad_field", "annotation 11 has bbox"),
    ("annotations.0.bbox", [1, 2, float("nan"), 4], "bad_field", "annotation 11 has bbox"),
    ("annotations.0.bbox", [1, 2, 10**400, 4], "bad_field", "annotation 11 has bbox"),
    ("annotations.0.bbox", "DELETE", "missing_field", "annotation 11 has no 'bbox'"),
    ("annotations.0.area", -1, "bad_field", "annotation 11 has area = -1"),
    ("annotations.0.area", "big", "bad_field", r"annotation 11 has area = \['big'\]"),
    ("annotations.0.iscrowd", "no", "bad_field", "annotation 11 has iscrowd = 'no'"),
    ("annotations.0.category_id", 5, "unknown_category", "annotation 11 has category_id = 5, which 'categories'"),
    ("annotations.0.category_id", "90", "bad_field", "annotation 11 has category_id = '90', not a whole number"),
    ("annotations.0.image_id", 99, "unknown_image", "annotation 11 has image_id = 99, which 'images'"),
    ("annotations.0.id", 13, "duplicate_annotation_id", "annotation 13 has an id that an earlier annotation has"),
    ("annotations.0.id", "DELETE", "missing_field", r"annotations\[0\] has no 'id'"),
    ("annotations.0", 5, "bad_record", r"annotations\[0\] is 5, not an object"),
    ("annotations.2.segmentation", [[1, 2, 3]], "bad_segmentation", "annotation 13 has a 'segmentation'"),
    ("annotations.2.segmentation", [["1", 2, 3, 4, 5, 6]], "bad_segmentation", "annotation 13 has a 'segmentation'"),
    ("annotations.2.segmentation", [[5, 5, 15, 5, 10, 32]], "bad_segmentation", "annotation 13 has a 'segmentation'"),
    ("annotations.2.segmentation", [[-2, 5, 15, 5, 10, 15]], "bad_segmentation", "annotation 13 has a 'segmentation'"),
    ("annotations.2.segmentation", [[5, 5, 42, 5, 10, 15]], "bad_segmentation", "annotation 13 has a 'segmentation'"),
    ("annotations.2.segmentation", "x", "bad_segmentation", "annotation 13 has a 'segmentation'"),
    ("annotations.2.segmentation", {"size": [30, 40], "counts": [5, 3]}, "bad_segmentation", "annotation 13 has a 'segmentation' that cannot be used: its run lengths do not add up"),
    ("annotations.2.segmentation", {"size": [30, 40], "counts": "~~~~zz"}, "bad_segmentation", "annotation 13 has a 'segmentation'"),
    ("annotations.2.segmentation", {"size": [3, 4], "counts": [5, 7]}, "bad_segmentation", "annotation 13 has a 'segmentation'"),
    ("images.0.width", 0, "bad_image_size", "image 7 has width = 0 pixels"),
    ("images.0.height", "DELETE", "missing_field", "image 7 has no 'height'"),
    ("images.0.file_name", "../a.jpg", "bad_file_name", r"image 7 is outside the image folder: '../a.jpg'"),
    ("images.0.file_name", "c.jpg", "missing_image", r"c\.jpg \(id 7\) does not exist"),
    ("images.0.id", 3, "duplicate_image_id", "image 3 has an id that an earlier image has"),
    ("categories.0.id", 2, "duplicate_category_id", r"categories\[1\] repeats id 2"),
    ("categories.0.name", 8, "bad_field", r"categories\[0\] has name = 8, not a text"),
    ("categories.1.name", "zebra", "duplicate_class_name", r"categories\[1\] has id 2 and the name 'zebra' of category 90"),
    ("categories.1.name", "\ud800", "bad_class_name", r"categories\[1\] has the class name '\\ud800'"),
    ("categories.1.name", "a\x1b[2J", "bad_class_name", r"categories\[1\] has the class name 'a\\x1b\[2J'"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "kind", "message"), DEFECTS)
def test_each_defect_gives_one_clear_error_or_is_counted(write_coco, small_coco, field, value, kind, message):
    content = deepcopy(small_coco)
    # The record that repeats an id must be the second one.
    if kind == "duplicate_annotation_id":
        content["annotations"].reverse()
        field = "annotations.2.id"
    if kind == "duplicate_image_id":
        content["images"].reverse()
        field = "images.1.id"
    change(field, value)(content)
    path, root = write_coco(content)
    with pytest.raises(DataError, match=message) as caught:
        read_coco(path, root)
    text = str(caught.value)
    assert (str(path) in text or "c.jpg" in text) and "\n" not in text and "policy=skip" in text
    index = read_coco(path, root, policy="skip")
    assert index.defects[kind].count >= 1
    assert re.search(message, index.defects[kind].examples[0])


def test_skipping_does_not_change_other_records(write_coco, small_coco):
    whole = read_coco(*write_coco(small_coco))
    content = deepcopy(small_coco)
    content["annotations"].append({"id": 14, "image_id": 3, "category_id": 90, "bbox": [1, 1, 0, 0]})
    index = read_coco(*write_coco(content), policy="skip")
    assert {kind: defect.count for kind, defect in index.defects.items()} == {"degenerate_box": 1}
    assert index.coco_dict() == whole.coco_dict()


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("categories.0.name", "ant", "duplicate_class_name"),
        ("categories.0.name", "a\x1b", "bad_class_name"),
        ("images.0.width", 0, "bad_image_size"),
        ("images.0.file_name", 5, "bad_field"),
    ],
)
def test_a_bad_category_or_image_is_one_finding_without_its_annotations(
    write_coco, small_coco, field, value, kind
):
    content = deepcopy(small_coco)
    content["categories"].reverse()  # ids 2, 90: "ant" comes first
    if kind == "duplicate_class_name":
        field = "categories.1.name"
    change(field, value)(content)
    index = read_coco(*write_coco(content), policy="skip")
    assert {name: defect.count for name, defect in index.defects.items()} == {kind: 1}


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ([15, 2, 9, 5], [15, 2, 20, 7]),
        ([-3, 2, 9, 5], [0, 2, 6, 7]),
        ([1, -4, 9, 5], [1, 0, 10, 1]),
        ([1, 18, 9, 5], [1, 18, 10, 20]),
        ([-3, -4, 30, 40], [0, 0, 20, 20]),
    ],
)
def test_a_box_that_exceeds_the_image_is_clipped_when_skipping(write_coco, small_coco, box, inside):
    """The image has 20 x 20 pixels."""
    small_coco["annotations"][0]["bbox"] = box
    index = read_coco(*write_coco(small_coco), policy="skip")
    assert index.boxes[2].tolist() == inside and index.defects["box_sticks_out"].count == 1


@pytest.mark.parametrize("box", [[-0.5, 2, 21, 5], [2, -1, 5, 22]])
def test_rounding_of_annotation_tools_is_not_a_defect(write_coco, small_coco, box):
    small_coco["annotations"][0]["bbox"] = box
    index = read_coco(*write_coco(small_coco))
    x, y, w, h = box
    assert index.defects == {} and index.boxes[2].tolist() == [x, y, x + w, y + h]


def test_the_mask_of_a_crowd_region_gives_no_extreme_points(write_coco, small_coco):
    for mask in ([[5, 5, 15, 5, 10, 15]], {"size": [30, 40], "counts": [30, 60, 1110]}):
        small_coco["annotations"][1]["segmentation"] = mask
        index = read_coco(*write_coco(small_coco))
        position = index.annotation_ids.tolist().index(12)
        assert index.crowd[position] and np.isnan(index.extreme_points[position]).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("\x80\xff", "cannot be read as JSON"),
        ("[1, 2]", "contains a list, not an object"),
        ('{"images": [], "categories": []}', "has no list 'annotations'"),
        ('{"images": 3, "categories": [], "annotations": []}', "has no list 'images'"),
    ],
)
def test_a_broken_file_is_named(write_coco, small_coco, text, message):
    path, root = write_coco(small_coco)
    path.write_bytes(text.encode("latin-1"))
    for policy in ("error", "skip"):
        with pytest.raises(DataError, match=message) as caught:
            read_coco(path, root, policy=policy)
        assert str(path) in str(caught.value)


def test_a_missing_data_set_gives_an_error_with_its_command(tmp_path):
    with pytest.raises(DataError, match="there is no file .*none.json: run the download"):
        read_coco(tmp_path / "none.json", tmp_path, remedy="run the download")


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_file_without_classes_is_rejected(write_coco, small_coco, policy):
    small_coco["categories"], small_coco["annotations"] = [], []
    path, root = write_coco(small_coco)
    with pytest.raises(DataError, match=f"{path} has no classes"):
        read_coco(path, root, policy=policy)


def test_null_means_an_absent_optional_field(write_coco, small_coco):
    small_coco["annotations"][0] |= {"iscrowd": None, "area": None, "segmentation": None}
    index = read_coco(*write_coco(small_coco))
    position = index.annotation_ids.tolist().index(11)
    assert not index.crowd[position] and index.areas[position] == 80


@pytest.mark.parametrize("empty", [None, [], [[]], [[], []]])
def test_an_empty_segmentation_means_an_object_without_a_mask(write_coco, small_coco, empty):
    for annotation in small_coco["annotations"]:
        annotation["segmentation"] = empty
    index = read_coco(*write_coco(small_coco))
    assert len(index.polygon_points) == 0
    assert index.boxes.shape == (len(small_coco["annotations"]), 4)


def test_names_in_any_script_are_read(write_coco, small_coco):
    names = ["chèvre à cornes", "猫 [cat]"]
    for category, name in zip(small_coco["categories"], names, strict=True):
        category["name"] = name
    assert read_coco(*write_coco(small_coco)).category_names == names[::-1]


def test_a_path_may_start_with_the_home_folder_and_must_be_text(write_coco, small_coco, monkeypatch):
    path, root = write_coco(small_coco)
    monkeypatch.setenv("HOME", str(path.parent))
    assert read_coco(f"~/{path.name}", f"~/{root.name}").sources == (str(path),)
    with pytest.raises(
        DataError, match="2024 is not a path but a number: fetch it, write it in quotes, '\"2024\"'"
    ):
        read_coco(2024, root, remedy="fetch it")


def test_an_unknown_policy_is_rejected(write_coco, small_coco):
    with pytest.raises(DataError, match="'error' or 'skip', not 'ignore'"):
        read_coco(*write_coco(small_coco), policy="ignore")


@pytest.mark.parametrize("name", ["a.jpg", "b.png"])
@pytest.mark.parametrize("part", [0.0, 0.5, 0.98])
def test_truncated_images_are_skipped_and_counted(write_coco, small_coco, name, part):
    path, root = write_coco(small_coco)
    data = (root / name).read_bytes()
    (root / name).write_bytes(data[: int(part * len(data))])
    index = read_coco(path, root, policy="skip")
    assert index.defects["broken_image"].count == 1 and name in index.defects["broken_image"].examples[0]
    assert len(index) == 1 and name not in index.file_names


def test_the_cache_gives_the_same_index_also_after_a_move(write_coco, small_coco, tmp_path):
    path, root = write_coco(small_coco)
    first = read_coco(path, root, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("index*"))) == 1
    moved = tmp_path / "moved"
    root.rename(moved)
    again = read_coco(path, moved, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("index*"))) == 1
    assert again.coco_dict() == first.coco_dict() and again.content_hash == first.content_hash
    assert again.image_path(0) == moved / "a.jpg"
    for name in ("extreme_points", "polygon_points", "part_offsets", "annotation_part_offsets"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))


def test_cached_defects_name_the_copy_that_is_read(write_coco, small_coco, tmp_path):
    small_coco["annotations"][0]["bbox"] = [1, 2, 0, 8]
    path, root = write_coco(small_coco)
    cache = tmp_path / "cache"
    first = read_coco(path, root, policy="skip", cache=cache)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy = elsewhere / "other.json"
    copy.write_bytes(path.read_bytes())
    second = read_coco(copy, root, policy="skip", cache=cache)
    (one,), (two,) = (index.defects["degenerate_box"].examples for index in (first, second))
    assert one.startswith(f"{path}: annotation 11") and two == one.replace(str(path), str(copy))
    assert len(list(cache.glob("index*"))) == 1


def test_the_cache_is_updated_when_the_file_changes(write_coco, small_coco, tmp_path):
    first = read_coco(*write_coco(small_coco), cache=tmp_path / "cache")
    content = deepcopy(small_coco)
    content["categories"][0]["name"] = "horse"
    second = read_coco(*write_coco(content), cache=tmp_path / "cache")
    assert list(second.category_names) == ["ant", "horse"] and second.content_hash != first.content_hash


@pytest.mark.parametrize("cached", [True, False])
def test_a_file_that_is_replaced_during_reading_is_not_cached_as_the_old_one(
    write_coco, small_coco, tmp_path, monkeypatch, cached
):
    path, root = write_coco(small_coco)
    cache = tmp_path / "cache" if cached else None

    def replaced(source, real=coco.load_json):
        content = json.loads(source.read_bytes())
        content["categories"][0]["name"] = "horse"
        source.write_text(json.dumps(content))
        os.utime(source, (1, 1))
        return real(source)

    with monkeypatch.context() as patched:
        patched.setattr(coco, "load_json", replaced)
        with pytest.raises(
            DataError, match=f"{path} was changed while it was read; run the same command again"
        ):
            read_coco(path, root, cache=cache)
    assert read_coco(path, root, cache=cache).category_names[1] == "horse"


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_cache_is_built_again_with_a_warning(write_coco, small_coco, tmp_path, caplog, damage):
    files = write_coco(small_coco)
    first = read_coco(*files, cache=tmp_path / "cache")
    (cached,) = (tmp_path / "cache").glob("index*")
    data = bytearray(cached.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "flip":
        position = data.index(b"annotation_ids") + 160
        data[position : position + 8] = bytes(255 - byte for byte in data[position : position + 8])
    else:
        data = b"" if damage == "empty" else b"no archive"
    cached.write_bytes(bytes(data))
    with caplog.at_level(logging.WARNING):
        again = read_coco(*files, cache=tmp_path / "cache")
    assert again.coco_dict() == first.coco_dict()
    assert "built again" in caplog.text and str(cached) in caplog.text
    caplog.clear()
    read_coco(*files, cache=tmp_path / "cache")
    assert caplog.text == ""


def test_a_cache_that_cannot_be_written_does_not_change_the_result(write_coco, small_coco, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    index = read_coco(*write_coco(small_coco), cache=blocked / "cache")
    assert len(index) == 2 and "cannot be written" in caplog.text


def test_selected_images_equal_a_file_with_only_these_images(shared_data, tmp_path):
    path = shared_data / "coco_sample" / "annotations" / "instances_val2017.json"
    index = read_coco(path, shared_data / "coco_sample" / "val2017")
    content = json.loads(path.read_text())
    content["images"] = [content["images"][i] for i in (9, 2)]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [own for own in content["annotations"] if own["image_id"] in kept]
    (tmp_path / "two.json").write_text(json.dumps(content))
    chosen, expected = index.select([9, 2]), read_coco(tmp_path / "two.json", index.image_root)
    assert chosen.coco_dict() == expected.coco_dict()
    for name in ("extreme_points", "polygon_points", "part_offsets", "annotation_part_offsets"):
        np.testing.assert_array_equal(getattr(chosen, name), getattr(expected, name))
    assert chosen.content_hash != index.content_hash
