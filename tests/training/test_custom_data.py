"""Real sets as `dataset=custom`: a VOC set converted to COCO files, as pycocotools reads them, and one with its own layout from a five-line file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from pycocotools.coco import COCO

from afl.config import CONF
from afl.training import run_cell
from afl.training.compose import compose_cell
from afl.training.data import read_data
from datasets import DataError, read_voc
from scripts.prepare_data import main

SMALL = [
    "detector=fcos", "loss=afl", "backbone=tiny", "regime=short", "initial_weights=null", "logger=none",
    "trainer.max_duration=2steps", "trainer.batch_size=2", "trainer.eval_batch_size=2", "trainer.pictures=1",
    "trainer.device=cpu", "trainer.progress=none", "dataset.train_transform.dense.short_sides=[96]",
    "dataset.eval_transform.dense.short_side=96",
]  # fmt: skip


def convert(source: Path, root: Path, images: int) -> None:
    """Some images of BCCD's two splits in the layout that `custom` expects."""
    for split in ("train", "val"):
        index = read_voc(
            root=source, splits=[split], classes=["Platelets", "RBC", "WBC"], policy="skip", cache=None
        )
        (root / split).mkdir(parents=True)
        (root / split / "JPEGImages").symlink_to(source / "JPEGImages")
        (root / f"{split}.json").write_text(json.dumps(index.select(list(range(images))).coco_dict()))


def test_a_converted_voc_set_trains_and_equals_what_pycocotools_reads(shared_data, tmp_path, capsys):
    root = tmp_path / "cells"
    convert(shared_data / "bccd", root, images=6)
    where = ["dataset=custom", "dataset.name=cells", f"dataset.root={root}", f"paths.cache={tmp_path}/cache"]
    assert main(["check", *where]) == 0
    truth = COCO(str(root / "train.json"))
    assert f"6 images, {len(truth.anns)} objects, 3 classes" in capsys.readouterr().out
    overrides = [text for text in SMALL if not text.startswith(("detector", "loss"))]
    config = compose_cell(
        detector="fcos", loss="afl", overrides=[*where, *overrides, f"paths.output={tmp_path}/outputs"]
    )
    record = run_cell(config)
    assert record.status == "finished" and list(record.per_class) == ["Platelets", "RBC", "WBC"]
    assert record.key.startswith("cells-fcos-afl-s0-")


def test_five_lines_describe_any_layout(shared_data, tmp_path):
    folder = tmp_path / "conf" / "dataset"
    folder.mkdir(parents=True)
    # The example at the top of conf/dataset/custom.yaml, for a real set.
    shown = (CONF / "dataset" / "custom.yaml").read_text().partition("set `dataset=birds`:\n")[2]
    lines = [line.removeprefix("#   ") for line in shown.splitlines() if line.startswith("#   ")]
    assert len(lines) == 5
    text = "\n".join(lines).replace("birds", "trash").replace("/data/trash", str(shared_data / "trashcan"))
    text = text.replace("/labels/", "/annotations/instances_")
    text = text.replace(
        'train.json", image_root: "${dataset.root}/images"',
        'train.json", image_root: "${dataset.root}/train"',
    )
    text = text.replace(
        'val.json", image_root: "${dataset.root}/images"', 'val.json", image_root: "${dataset.root}/val"'
    )
    (folder / "trash.yaml").write_text(text)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: DictConfig = compose(
            "config",
            overrides=[
                f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "dataset=trash", f"paths.cache={tmp_path}/cache", *SMALL,
            ],
        )  # fmt: skip
    assert config.dataset.name == "trash" and config.backbone._target_ == "detectors.TinyBackbone"
    data = read_data(config)
    truth = COCO(str(shared_data / "trashcan" / "annotations" / "instances_train.json"))
    assert (len(data.train), len(data.train.boxes)) == (len(truth.imgs), len(truth.anns))
    assert len(data.classes) == len(truth.cats) == 22


@pytest.mark.parametrize("missing", ["train.json", "val.json", "val"])
def test_a_missing_file_is_named_with_the_setting_to_change(missing, tmp_path):
    for name in {"train.json", "val.json"} - {missing}:
        (tmp_path / name).write_text(
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}'
        )
    for name in {"train", "val"} - {missing}:
        (tmp_path / name).mkdir()
    overrides = ["dataset=custom", f"dataset.root={tmp_path}", f"paths.cache={tmp_path}/cache"]
    config = compose_cell(detector="fcos", loss="fl", overrides=overrides)
    with pytest.raises(DataError) as error:
        read_data(config)
    message = str(error.value)
    assert f"{tmp_path}/{missing}:" in message and "set dataset.root" in message and "\n" not in message
