"""The data command: what it finds, and its exit codes."""

from __future__ import annotations

import json

import pytest

from scripts.prepare_data import main


@pytest.fixture
def custom(tmp_path, write_coco, small_coco):
    """A custom data set under tmp_path/set, and the arguments that check it."""
    path, images = write_coco(small_coco)
    root = tmp_path / "set"
    root.mkdir()
    for split in ("train", "val"):
        (root / f"{split}.json").write_text(json.dumps(small_coco))
        (root / split).symlink_to(images)
    return root, ["check", "dataset=custom", f"dataset.root={root}", f"paths.cache={tmp_path / 'cache'}"]


def test_a_clean_set_passes(custom, capsys):
    _, arguments = custom
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 images, 3 objects, 2 classes" in printed and "1 crowd regions" in printed
    assert "1 classes without an object: ant" in printed and "0 defects" in printed
    # Frequency groups are those of the training images.
    assert printed.count("2 classes (2 rare, 0 common, 0 frequent)") == 1


def test_defects_are_counted_by_kind_and_the_policy_decides_the_exit_code(custom, small_coco, capsys):
    root, arguments = custom
    small_coco["annotations"][0]["bbox"] = [1, 2, 0, 8]
    small_coco["annotations"][2]["category_id"] = 4
    small_coco["annotations"].append({"id": 14, "image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 8]})
    (root / "train.json").write_text(json.dumps(small_coco))
    (root / "val" / "b.png").write_bytes(b"\x89PNG")
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert "1 x degenerate_box" in printed and "annotation 11 has a box without area" in printed
    assert "1 x unknown_category" in printed and "annotation 13 has category_id = 4" in printed
    # The image is the same file in both splits.
    assert printed.count("1 x broken_image") == 2 and "4 defects; policy: error" in printed
    assert main([*arguments, "dataset.policy=skip"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "dataset=trashcans"], "Did you mean dataset=trashcan?"),
        (
            ["check", "dataset=custom", "dataset.root=/nowhere"],
            "there is no file /nowhere/train.json: set dataset.root",
        ),
        (["check", "dataset=lvis", "dataset.root=/nowhere"], "https://www.lvisdataset.org"),
        (["check", "dataset.rot=3"], "Did you mean dataset.root?"),
        (["chek"], "there is no 'chek'; did you mean check?"),
        (["zebra"], "python -m scripts.prepare_data check"),
        ([], "python -m scripts.prepare_data check"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_message(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_shapes_are_made_where_asked(tmp_path, capsys):
    arguments = [
        "shapes",
        f"dataset.root={tmp_path}",
        "dataset.folder.num_train=20",
        "dataset.folder.num_val=10",
    ]
    assert main([*arguments, "dataset.seed=3"]) == 0
    folder = capsys.readouterr().out.strip()
    assert folder.startswith(f"{tmp_path}/shapes-seed3-")
    assert json.loads((tmp_path / folder / "settings.json").read_text())["num_train"] == 20
