"""The conversion of the photograph data sets' releases, against JSON and JPEG files that were prepared independently."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from datasets import DataError
from datasets.prepare_ccp import balanced_halves, garments, prepare_ccp, small_size
from datasets.prepare_chula import CLASSES, cell_records, halves_of_blocks, prepare_chula, read_points
from datasets.prepare_foda import class_pools, drawn_counts, prepare_foda, read_frame, thin
from scripts.prepare_data import main


def load(path):
    return json.loads(path.read_bytes())


def annotations(contents, image_id):
    """Annotation records of one image without ids, from the files that may hold it."""
    for content in contents:
        if any(image["id"] == image_id for image in content["images"]):
            return [
                {key: value for key, value in record.items() if key not in ("id", "image_id")}
                for record in content["annotations"]
                if record["image_id"] == image_id
            ]
    raise AssertionError(f"image {image_id} is in none of the files")


def halves(folder, split):
    return [load(folder / f"split{split}_{half}.json") for half in "ab"]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_ccp_objects(shared_data, number):
    folder = shared_data / "ccp"
    contents = halves(folder, 0)
    names = [category["name"] for category in contents[0]["categories"]]
    labels = [str(name[0]) for name in loadmat(folder / "raw" / "label_list.mat")["label_list"].ravel()]
    size = small_size(Image.open(folder / "raw" / f"{number:04}.jpg").size)
    found = garments(loadmat(folder / "raw" / f"{number:04}.mat")["groundtruth"], size)
    records = [{"category_id": names.index(labels[label]) + 1, **record} for label, record in found]
    assert records == annotations(contents, number)


@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize(("name", "divide"), [("ccp", balanced_halves), ("chula_rbc12", halves_of_blocks)])
def test_halves(shared_data, name, divide, split):
    contents = halves(shared_data / name, split)
    classes = {image["id"]: [] for content in contents for image in content["images"]}
    for content in contents:
        for record in content["annotations"]:
            classes[record["image_id"]].append(record["category_id"])
    expected = [{image["id"] for image in content["images"]} for content in contents]
    assert list(divide(classes, split)) == expected


@pytest.mark.parametrize("name", ["1", "10"])
def test_chula_boxes(shared_data, name):
    folder = shared_data / "chula_rbc12"
    contents = halves(folder, 0)
    image_id = next(
        i["id"] for content in contents for i in content["images"] if i["file_name"] == f"{name}.jpg"
    )
    image = np.asarray(Image.open(folder / "raw" / f"{name}.jpg").convert("RGB"))
    records = cell_records(image, read_points(folder / "raw" / f"{name}.txt"))
    assert records == annotations(contents, image_id)
    assert [category["name"] for category in contents[0]["categories"]] == list(CLASSES)


@pytest.mark.parametrize("number", [218, 794, 16605])
def test_foda_boxes(shared_data, number):
    folder = shared_data / "foda"
    contents = [load(folder / f"{split}.json") for split in ("train0", "train1", "val")]
    classes = [category["name"] for category in contents[0]["categories"]]
    records = read_frame(folder / "raw" / f"{number:06}.xml").records(classes)
    assert records == annotations(contents, number)


def test_foda_pools_and_draws():
    train, val = class_pools(dict.fromkeys([*range(0, 20, 2), *range(100, 140)], "nut") | {30: "pen"})
    assert train["nut"] == [0, 2, 4, 6, 8, 10, *range(100, 126)]
    assert val["nut"] == [14, 16, 18, *range(130, 140)]
    assert thin([0, 1, 2, 3, 4, 5, 6], 3) == [0, 2, 4]
    available = {f"c{n:02}": 1000 for n in range(31)} | {"c05": 20}
    for draw in (0, 1):
        counts = drawn_counts(available, draw)
        assert max(counts.values()) == 300 and min(counts.values()) == 3 and counts["c05"] <= 20
    assert drawn_counts(available, 0) != drawn_counts(available, 1)


def as_released(shared_data, tmp_path, name):
    """The raw samples in the folders of the release."""
    raw = shared_data / name / "raw"
    places = {
        "ccp": {".mat": "annotations/pixel-level", ".jpg": "photos"},
        "chula_rbc12": {".txt": "Label", ".jpg": "Dataset"},
    }[name]
    release = tmp_path / "release"
    for path in raw.iterdir():
        folder = release if path.name == "label_list.mat" else release / places[path.suffix]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.name)
    return release


@pytest.mark.parametrize(
    ("name", "prepare", "files"),
    [
        ("ccp", prepare_ccp, ["0001.jpg", "0002.jpg", "0003.jpg"]),
        ("chula_rbc12", prepare_chula, ["1.jpg", "10.jpg"]),
    ],
)
def test_images_equal_the_prepared_ones_byte_for_byte(shared_data, tmp_path, name, prepare, files):
    root = tmp_path / "root"
    prepare(as_released(shared_data, tmp_path, name), root)
    assert sorted(path.name for path in (root / "images").iterdir()) == files
    for file in files:
        assert (root / "images" / file).read_bytes() == (shared_data / name / "images" / file).read_bytes()
    assert sum(len(content["images"]) for content in halves(root, 0)) == len(files)


def test_the_command_converts_and_reads(shared_data, tmp_path, capsys):
    release, root = as_released(shared_data, tmp_path, "chula_rbc12"), tmp_path / "root"
    arguments = [f"dataset.root={root}", f"paths.cache={tmp_path / 'cache'}"]
    assert main(["chula", *arguments]) == 2
    assert "set existing=FOLDER" in capsys.readouterr().err
    main(["chula", f"existing={release}", *arguments])
    printed = capsys.readouterr().out
    assert f"chula is complete in {root}" in printed and "2 images" in printed


def test_a_folder_without_the_release_is_refused(tmp_path):
    for prepare in (prepare_foda, prepare_chula):
        with pytest.raises(DataError, match="set existing= to the folder of the release"):
            prepare(tmp_path, tmp_path / "root")
    with pytest.raises(DataError, match="label_list.mat cannot be read"):
        prepare_ccp(tmp_path, tmp_path / "root")
