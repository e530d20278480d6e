"""The data command: its findings and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from datasets import releases
from scripts.prepare_data import CONVERSIONS, DOWNLOADS, main


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
    assert "2 images, 3 objects, 2 classes" in printed and "1 crowd region," in printed
    assert "1 class without an object: ant" in printed and "0 defects" in printed
    # Frequency groups follow from the training images.
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


def test_two_classes_with_one_name_are_reported_with_file_ids_and_remedy(custom, small_coco, capsys):
    root, arguments = custom
    first, second = small_coco["categories"][:2]
    second["name"] = first["name"]
    (root / "train.json").write_text(json.dumps(small_coco))
    main(arguments)
    printed = capsys.readouterr().out
    assert "duplicate_class_name" in printed and f"{root / 'train.json'}: categories[1]" in printed
    assert str(second["id"]) in printed and str(first["id"]) in printed and "rename one of them" in printed


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
        (["chek"], "there is no command 'chek'. Did you mean check?"),
        (["zebra"], "python -m scripts.prepare_data check"),
        ([], "python -m scripts.prepare_data check"),
    ],
)
def test_impossible_requests_give_one_message(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_every_published_data_set_has_a_command():
    assert set(releases.PUBLISHED) == set(DOWNLOADS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["chek"],
        ["check", "dataset=trashcans"],
        ["coco", "connections=0"],
        ["coco", "verify=no"],
        ["ccp"],
    ],
    ids=" ".join,
)
def test_help_and_mistakes_do_not_import_torch(arguments):
    code = (
        f"import sys; from scripts.prepare_data import main; main({arguments}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_conversion_without_a_release_names_the_missing_files(name, tmp_path, capsys):
    assert main([name, f"existing={tmp_path}/none", f"dataset.root={tmp_path}/set"]) == 2
    assert f"{tmp_path}/none" in capsys.readouterr().err


def test_control_characters_in_paths_and_names_are_escaped(custom, small_coco, capsys):
    root, arguments = custom
    odd = root.rename(root.with_name("set\x1b[2J"))
    small_coco["images"][0]["file_name"] = "\x1b]0;title\x07.png"
    (odd / "train.json").write_text(json.dumps(small_coco))
    arguments = [f"dataset.root={odd}" if one.startswith("dataset.root") else one for one in arguments]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert "set\\x1b[2J/train.json" in printed.out and "\\x1b]0;title\\x07.png" in printed.out
    assert main([*arguments[:-1], "dataset.train.annotations=/no\x1b[2Jwhere"]) == 2
    printed_errors = capsys.readouterr().err
    assert "/no\\x1b[2Jwhere" in printed_errors
    assert "\x1b" not in printed.out + printed.err + printed_errors


def test_shapes_are_generated_in_the_given_folder(tmp_path, capsys):
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
