"""Videos split by frame: every frame is in exactly one split, and validation frames are between training frames."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afl.training.build import instantiate
from afl.training.compose import compose_cell
from datasets import generate_frame_split

CATEGORIES = [{"id": 3, "name": "eel"}, {"id": 7, "name": "net"}]


def source(videos: dict[str, int], boxes: int = 2) -> dict:
    """A COCO file with ``videos`` of these numbers of frames, and with ids from 1."""
    images = [
        {"id": 0, "file_name": f"{video}_{frame:04d}.jpg", "video": video, "width": 8, "height": 8}
        for video, frames in videos.items()
        for frame in range(frames)
    ]
    for number, image in enumerate(images, start=1):
        image["id"] = number
    annotations = [
        {
            "id": n,
            "image_id": n // boxes + 1,
            "category_id": 3,
            "bbox": [0, 0, 1 + n, 2],
            "area": n,
            "iscrowd": 0,
        }
        for n in range(boxes * len(images))
    ]
    return {"categories": CATEGORIES, "images": images, "annotations": annotations}


def split(folder, **contents: dict) -> dict[str, dict]:
    """Both splits of sources with this content."""
    paths = {}
    for name, content in contents.items():
        paths[name] = folder / f"{name}.json"
        paths[name].write_text(json.dumps(content))
    made = {
        name: generate_frame_split(folder / "made", split=name, sources=paths) for name in ("train", "val")
    }
    return {name: json.loads(path.read_text()) for name, path in made.items()}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 7), min_size=1),
    st.dictionaries(st.sampled_from("uvwxyz"), st.integers(1, 7), min_size=1),
)
def test_every_frame_is_in_one_split_with_its_boxes(tmp_path, one, other):
    contents = {"one": source(one), "other": source(other, boxes=1)}
    splits = split(tmp_path, **contents)
    found = [image["file_name"] for content in splits.values() for image in content["images"]]
    assert sorted(found) == sorted(
        f"{folder}/{image['file_name']}"
        for folder, content in contents.items()
        for image in content["images"]
    )
    boxes = {}
    for folder, content in contents.items():
        for image in content["images"]:
            own = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
            boxes[f"{folder}/{image['file_name']}"] = own
    for content in splits.values():
        ids = [image["id"] for image in content["images"]]
        assert len(set(ids)) == len(ids)
        for image in content["images"]:
            own = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
            assert own == boxes[image["file_name"]]
    ids = [a["id"] for content in splits.values() for a in content["annotations"]]
    assert len(set(ids)) == len(ids)


def test_validation_is_the_middle_frame_of_every_video_that_has_one(tmp_path):
    first = source({"a": 5, "b": 2, "c": 1})
    first["images"].sort(
        key=lambda image: int(image["id"]) % 3
    )  # in the file, frames are not in the order of time
    splits = split(tmp_path, first=first, second=source({"d": 3}))
    assert [image["file_name"] for image in splits["val"]["images"]] == [
        "first/a_0002.jpg",
        "second/d_0001.jpg",
    ]


def test_the_split_is_updated_when_its_sources_change(tmp_path):
    assert len(split(tmp_path, only=source({"a": 5}))["val"]["images"]) == 1
    assert len(split(tmp_path, only=source({"a": 5, "b": 4}))["val"]["images"]) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content["images"][1].pop("video"), "image 2 of second does not name its video"),
        (
            lambda content: content["annotations"][0].update(image_id=99),
            "annotation 0 of second has an unknown image_id",
        ),
        (
            lambda content: content.update(categories=CATEGORIES[:1]),
            "categories of second differ from those of first",
        ),
    ],
)
def test_sources_that_cannot_be_split_give_an_error(tmp_path, change, said):
    content = source({"b": 3})
    change(content)
    with pytest.raises(ValueError, match=said):
        split(tmp_path, first=source({"a": 3}), second=content)
    assert not list((tmp_path / "made").glob("frames-*"))


def test_trashcan_by_frame_has_all_of_its_images_and_the_same_videos(shared_data, tmp_path):
    paths = [f"paths.data={shared_data}", f"paths.cache={tmp_path}"]
    by_video, by_frame = (
        compose_cell(detector="fcos", loss="fl", overrides=[f"dataset={name}", *paths]).dataset
        for name in ("trashcan", "trashcan_frames")
    )
    whole = [instantiate(by_video[split]) for split in ("train", "val")]
    train, val = (instantiate(by_frame[split]) for split in ("train", "val"))
    assert len(train) + len(val) == sum(len(index) for index in whole)
    assert len(train.boxes) + len(val.boxes) == sum(len(index.boxes) for index in whole)
    assert train.category_names == whole[0].category_names
    assert all(val.image_path(i).exists() for i in range(len(val)))
    videos = [{name.split("_frame")[0] for name in index.file_names} for index in (train, val)]
    assert videos[1] < videos[0] and not set(train.file_names) & set(val.file_names)
