"""The LVIS reader compared with the official package lvis."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from datasets import DataError, read_lvis, read_shapes


def official(path):
    import lvis

    return lvis.LVIS(str(path))


def assert_equals_lvis(index, truth) -> None:
    categories = [truth.cats[i] for i in sorted(truth.cats)]
    assert list(index.category_names) == [category["name"] for category in categories]
    assert list(index.frequency) == [category["frequency"] for category in categories]
    content = index.coco_dict()
    assert {image["id"] for image in content["images"]} == set(truth.imgs)
    for image in content["images"]:
        expected = truth.imgs[image["id"]]
        for key in ("height", "width", "neg_category_ids", "not_exhaustive_category_ids"):
            assert image[key] == expected[key]
    assert len(content["annotations"]) == len(truth.anns)
    pairs = [(annotation, truth.anns[annotation["id"]]) for annotation in content["annotations"]]
    for ours, theirs in pairs:
        assert ours["image_id"] == theirs["image_id"] and ours["category_id"] == theirs["category_id"]
    for key in ("bbox", "area"):
        ours, theirs = (np.array([pair[side][key] for pair in pairs]) for side in (0, 1))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-4)


def test_index_of_shapes_equals_lvis_package(shapes_folder):
    index = read_shapes(shapes_folder, split="val", annotation_format="lvis")
    assert_equals_lvis(index, official(shapes_folder / "lvis" / "val.json"))
    assert all(index.verified(i).all() for i in range(len(index)))


@pytest.fixture
def sample(shared_data, tmp_path):
    """The official sample of 100 images, with black images instead of the photographs."""
    path = shared_data / "evaluators" / "lvis" / "lvis_val_100.json"
    content = json.loads(path.read_text())
    (tmp_path / "val2017").mkdir()
    for image in content["images"]:
        black = np.zeros((image["height"], image["width"]), np.uint8)
        cv2.imwrite(str(tmp_path / "val2017" / image["coco_url"].rpartition("/")[2]), black)
    return path, tmp_path, content


def test_index_of_the_official_sample_equals_lvis_package(sample):
    path, root, content = sample
    index = read_lvis(path, root)
    assert index.num_classes == 1230
    assert_equals_lvis(index, official(path))
    first = content["images"][0]
    assert index.image_path(0) == root / "val2017" / first["coco_url"].rpartition("/")[2]


def test_verified_classes_are_present_or_negative_and_exhaustive(sample):
    path, root, content = sample
    index = read_lvis(path, root)
    incomplete = 0
    for i, image in enumerate(content["images"]):
        present = {a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]}
        expected = (present | set(image["neg_category_ids"])) - set(image["not_exhaustive_category_ids"])
        assert set(index.category_ids[index.verified(i)].tolist()) == expected
        incomplete += len(present & set(image["not_exhaustive_category_ids"]))
    assert incomplete > 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c["images"][0].update(neg_category_ids=[5000]), "has 5000 in neg_category_ids"),
        (
            lambda c: c["images"][0].update(not_exhaustive_category_ids="x"),
            "not_exhaustive_category_ids = 'x'",
        ),
        (lambda c: c["images"][0].update(id=[3]), r"images\[0\] has id = \[3\], not a whole number"),
    ],
)
def test_damaged_federated_fields_are_named_or_counted(sample, tmp_path, damage, message):
    _, root, content = sample
    damage(content)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_lvis(path, root)


def test_a_coco_file_is_rejected(shapes_folder):
    with pytest.raises(DataError, match="category 1 has no 'frequency' r, c or f"):
        read_lvis(shapes_folder / "coco" / "val.json", shapes_folder / "JPEGImages")


@pytest.mark.parametrize("url", [None, "", 7, "DELETE"])
def test_file_names_are_used_without_a_url(sample, url):
    _, root, content = sample
    for image in content["images"]:
        image["file_name"] = "val2017/" + image.pop("coco_url").rpartition("/")[2]
        if url != "DELETE":
            image["coco_url"] = url
    path = root / "own.json"
    path.write_text(json.dumps(content))
    index = read_lvis(path, root)
    assert len(index) == 100 and index.file_names[0] == content["images"][0]["file_name"]


def test_null_lists_of_classes_are_empty(sample):
    _, root, content = sample
    content["images"][0] |= {"neg_category_ids": None, "not_exhaustive_category_ids": None}
    path = root / "own.json"
    path.write_text(json.dumps(content))
    assert read_lvis(path, root).coco_dict()["images"][0]["neg_category_ids"] == []


def test_selected_images_keep_their_verified_classes(sample, tmp_path):
    """A file with only these images, in this order."""
    path, root, content = sample
    index = read_lvis(path, root)
    incomplete = [i for i, image in enumerate(content["images"]) if image["not_exhaustive_category_ids"]]
    numbers = [incomplete[1], 0, incomplete[0]]
    content["images"] = [content["images"][i] for i in numbers]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [own for own in content["annotations"] if own["image_id"] in kept]
    (tmp_path / "three.json").write_text(json.dumps(content))
    chosen, expected = index.select(numbers), read_lvis(tmp_path / "three.json", root)
    assert chosen.coco_dict() == expected.coco_dict()
    for i in range(3):
        np.testing.assert_array_equal(chosen.verified(i), expected.verified(i))
