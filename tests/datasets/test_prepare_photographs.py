"""The conversion of the releases of photograph data sets, compared with JSON and JPEG files that were prepared independently."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from datasets import DataError
from datasets import prepare_foda as prepare_foda_module
from datasets.prepare_ccp import _large_parts, balanced_halves, garments, prepare_ccp, small_size
from datasets.prepare_chula import CLASSES, cell_records, halves_of_blocks, prepare_chula, read_points
from datasets.prepare_foda import class_pools, drawn_counts, prepare_foda, read_frame, thin
from scripts.prepare_data import main


def load(path):
    return json.loads(path.read_bytes())


def annotations(contents, image_id):
    """Annotation records of one image without ids, from the files that may contain it."""
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


def test_parts_of_a_garment_that_are_tiny_compared_with_the_largest_are_left_out():
    mask = np.zeros((200, 120), bool)
    mask[:100, :100] = mask[110:120, :12] = mask[130:140, :6] = True  # 10,000, 120 and 60 pixels; 1 % is 100
    kept = mask.copy()
    kept[130:140] = False
    np.testing.assert_array_equal(_large_parts(mask), kept)


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
    # Numbers that differ by three belong to one run, by four to two runs.
    numbers = [*range(0, 30, 3), *range(31, 51), *range(100, 140)]
    train, val = class_pools(dict.fromkeys(numbers, "nut") | {90: "pen"})
    assert train["nut"] == [*range(0, 18, 3), *range(31, 44), *range(100, 126)]
    assert val["nut"] == [21, 24, 27, *range(46, 51), *range(130, 140)]
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


def test_instrument_splits_use_linked_images_and_the_config_of_the_data_set(shared_data, tmp_path, capsys):
    output = tmp_path / "instrument"
    assert main(["instrument", f"existing={shared_data}", f"output={output}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"dataset=foda dataset.root={output}/foda dataset.draw=2"
    assert said[1] == f"dataset=ccp dataset.root={output}/ccp dataset.split=2"
    for line, name, numbers in zip(said, ("foda", "ccp"), (("1206", "441"), ("502", "502")), strict=True):
        assert (output / name / "images").resolve() == (shared_data / name / "images").resolve()
        main(["check", *line.split(), f"paths.cache={tmp_path / 'cache'}"])
        printed = capsys.readouterr().out
        assert all(f"  {number} images, " in printed for number in numbers) and "warning" not in printed
    train, val = (load(output / "foda" / f"{split}.json") for split in ("train2", "val"))
    first = {}
    for record in train["annotations"]:
        first.setdefault(record["image_id"], record["category_id"])
    curve = [max(3, round(150 * (3 / 150) ** (rank / 30))) for rank in range(31)]
    assert sorted(Counter(first.values()).values(), reverse=True) == curve
    # The records of each image equal those of the prepared file, and the later images of each class are for validation.
    prepared = [load(shared_data / "foda" / f"train{draw}.json") for draw in (0, 1)]
    for content in (train, val):
        for image in content["images"][::50]:
            assert annotations([content], image["id"]) == annotations(prepared, image["id"])
    later = {}
    for record in val["annotations"]:
        later.setdefault(record["image_id"], record["category_id"])
    for name in set(first.values()):
        assert max(i for i, own in first.items() if own == name) < min(
            i for i, own in later.items() if own == name
        )


def test_an_instrument_without_prepared_sets_or_with_other_images_gives_one_line(
    shared_data, tmp_path, capsys
):
    assert main(["instrument", f"existing={tmp_path}", f"output={tmp_path / 'out'}"]) == 2
    assert "foda/train0.json: set existing= to the folder" in capsys.readouterr().err
    (tmp_path / "out" / "foda" / "images").mkdir(parents=True)
    assert main(["instrument", f"existing={shared_data}", f"output={tmp_path / 'out'}"]) == 2
    assert "is not a link to" in capsys.readouterr().err


def test_a_folder_without_the_release_is_rejected(tmp_path):
    for prepare in (prepare_foda, prepare_chula):
        with pytest.raises(DataError, match="set existing= to the folder of the release"):
            prepare(tmp_path, tmp_path / "root")
    with pytest.raises(DataError, match="label_list.mat cannot be read"):
        prepare_ccp(tmp_path, tmp_path / "root")


def test_foda_from_a_release_to_the_command(shared_data, tmp_path, monkeypatch, capsys):
    """Copies of the three raw frames under consecutive numbers are three runs of two classes."""
    monkeypatch.setattr(prepare_foda_module, "MOST", 6)
    monkeypatch.setattr(prepare_foda_module, "VALIDATION", 2)
    raw = {100: "000218", 200: "000794", 300: "016605"}
    release, root = tmp_path / "release", tmp_path / "root"
    for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        (release / folder).mkdir(parents=True)
        for first, name in raw.items():
            for number in range(first, first + 12):
                shutil.copyfile(
                    shared_data / "foda" / "raw" / f"{name}{suffix}",
                    release / folder / f"{number:06}{suffix}",
                )
    arguments = [f"existing={release}", f"dataset.root={root}", f"paths.cache={tmp_path / 'cache'}"]
    assert main(["foda", *arguments]) == 0
    assert f"foda is complete in {root}" in capsys.readouterr().out
    prepared = [load(shared_data / "foda" / f"{split}.json") for split in ("train0", "train1", "val")]
    names = {category["id"]: category["name"] for category in prepared[0]["categories"]}
    for split, counts, numbers in (
        ("train0", [3, 6], range(7)),
        ("train1", [3, 6], range(7)),
        ("val", [2, 2], range(9, 12)),
    ):
        content = load(root / f"{split}.json")
        class_of = {record["image_id"]: record["category_id"] for record in content["annotations"]}
        assert sorted(Counter(class_of.values()).values()) == counts
        assert all(image["id"] % 100 in numbers for image in content["images"])
        own_names = {category["id"]: category["name"] for category in content["categories"]}
        for image in content["images"]:
            name = raw[image["id"] // 100 * 100]
            found = annotations([content], image["id"])
            expected = annotations(prepared, int(name))
            assert [own_names[record.pop("category_id")] for record in found] == [
                names[record.pop("category_id")] for record in expected
            ]
            assert found == expected
            assert (root / "images" / image["file_name"]).read_bytes() == (
                shared_data / "foda" / "images" / f"{name}.jpg"
            ).read_bytes()
