"""Every file of the zoo compared with pycocotools on the kept images, with the committed records, and with its checksum."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file, save_file

from afl.config import CONF
from afl.predict import load_predictor
from afl.tracking import differing, read_record
from afl.training.checkpoint import CheckpointError
from afl.zoo import ZOO, make, names, read_entry, write_entry, zoo_file
from afl.zoo.page import page
from datasets import read_coco
from scripts import zoo as command
from scripts.predict import main as predict

NAMES = names()
ROOT = CONF.parent


def test_the_zoo_is_small_and_follows_its_specification():
    files = [path for path in ZOO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    spec = yaml.safe_load((CONF / "zoo.yaml").read_text())
    assert NAMES and set(NAMES) <= set(spec["entries"])


@pytest.mark.parametrize("name", NAMES)
def test_a_file_reproduces_its_ap_on_the_kept_images(name):
    entry, _ = read_entry(zoo_file(name))
    predictor = load_predictor(f"zoo:{name}", device="cpu")
    folder = ZOO / entry.kept["folder"]
    truth = COCO(str(folder / "annotations.json"))
    rows = []
    for image in truth.dataset["images"]:
        found = predictor(folder / image["file_name"], score=0)
        for box, score, label in zip(found.boxes.double(), found.scores, found.labels, strict=True):
            x1, y1, x2, y2 = box.tolist()
            rows.append(
                [image["id"], x1, y1, x2 - x1, y2 - y1, float(score), predictor.category_ids[int(label)]]
            )
    evaluation = COCOeval(truth, truth.loadRes(np.array(rows)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    # Other processors sum bfloat16 products in another order.
    assert precision[precision > -1].mean() == pytest.approx(entry.kept["AP"], abs=0.02)
    assert len(truth.dataset["images"]) == entry.kept["images"] and entry.kept["AP"] > 0.3


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_agrees_with_its_run_and_with_committed_records(name):
    entry, weights = read_entry(zoo_file(name))
    cell = entry.about["config"]["cell"]
    for metric in ("AP", "AP_r", "AP_c", "AP_f"):
        assert entry.metrics[metric] == pytest.approx(entry.run["metrics"][metric], abs=0.015), metric
    records = list(
        (ROOT / "results").glob(f"*/records/{cell['dataset']}-{cell['detector']}-{cell['loss']}-s*.json")
    )
    for record in [read_record(path) for path in records]:
        same = record.protocol == entry.run["protocol"] and record.data_hash == entry.run["data_hash"]
        if same and record.seed == entry.about["config"]["seed"]:
            # Other states of the code change the last bits, so the figures differ like those of two seeds.
            assert entry.metrics["AP"] == pytest.approx(record.metrics["AP"], abs=0.08)
            assert entry.run["parameters"] == record.parameters
    assert ("reconstruction" in entry.note) == ("afl" in cell["loss"])
    assert not re.search(r'"/|home/|_target_": "afl.tracking', json.dumps(entry.about["config"]))
    learnt = sum(w.numel() for n, w in weights.items() if "running_" not in n and "num_batches" not in n)
    assert entry.run["parameters"] <= learnt


def test_the_page_agrees_with_the_files():
    entries = [read_entry(zoo_file(name))[0] for name in NAMES]
    sizes = {name: zoo_file(name).stat().st_size for name in NAMES}
    text = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")
    assert text == page(entries, sizes), "python -m scripts.zoo page"
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    for entry in entries:
        for metric in ("AP", "AP_r", "AP_c", "AP_f"):
            assert f"{100 * entry.metrics[metric]:.1f}" in rows[entry.name]


def test_a_file_is_read_by_safetensors_and_rejected_if_it_is_changed(tmp_path):
    path = zoo_file(NAMES[0])
    entry, weights = read_entry(path)
    raw = load_file(path)
    assert raw.keys() == weights.keys()
    assert {value.dtype for value in raw.values() if value.dim() > 1} == {torch.bfloat16}
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(data)
    (tmp_path / "short.safetensors").write_bytes(data[:5000])
    (tmp_path / "text.safetensors").write_text("no tensors")
    save_file(raw, tmp_path / "foreign.safetensors")
    header = path.read_bytes().replace(b"commit", b"commat", 1)
    (tmp_path / "described.safetensors").write_bytes(header)
    for name, words in (("flipped", "damaged"), ("short", "cannot be read"), ("text", "cannot be read"), ("foreign", "not written by"),
                        ("described", "damaged"), ("gone", "does not exist")):  # fmt: skip
        with pytest.raises(CheckpointError, match=words) as caught:
            load_predictor(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(caught.value)
    write_entry(tmp_path / "again.safetensors", entry, weights)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_config_of_a_file_cannot_call_anything_else(tmp_path):
    entry, weights = read_entry(zoo_file(NAMES[0]))
    config = json.loads(json.dumps(entry.about["config"]))
    config["loss"] = {"_target_": "os.system", "command": "true"}
    changed = {**vars(entry), "about": {**entry.about, "config": config}}
    write_entry(tmp_path / "foreign.safetensors", type(entry)(**changed), weights)
    with pytest.raises(CheckpointError, match="cannot call it"):
        load_predictor(tmp_path / "foreign.safetensors")


def test_errors_about_wrong_names_suggest_the_right_one():
    with pytest.raises(CheckpointError, match=f"Did you mean {NAMES[0]}"):
        load_predictor(f"zoo:{NAMES[0]}s")
    for arguments, words in ((["mak"], "Did you mean make"), (["make", "names=[fcos-shape-fl]"], "Did you mean fcos-shapes-fl"),
                             (["add", "name=x"], "which run"), (["make", "detectr=fcos"], "detector")):  # fmt: skip
        with pytest.raises((ValueError, RuntimeError), match=words):
            command.main(arguments)


def test_the_demo_draws_a_picture_and_photos_get_a_warning_from_a_shapes_model(tmp_path, capsys):
    import cv2

    assert predict(["demo", "run=zoo:fcos-shapes-afl", f"output={tmp_path}/demo.png"]) == 0
    assert f"{tmp_path}/demo.png" in capsys.readouterr().out
    assert min(cv2.imread(str(tmp_path / "demo.png")).shape[:2]) > 500
    image = next((ZOO / "images" / "shapes_lvis").glob("*.png"))
    assert predict(["run=zoo:fcos-shapes-afl", f"images={image}", f"output={tmp_path}/found"]) == 0
    said = capsys.readouterr()
    assert "knows generated shapes of 96 pixels only" in said.err and "reconstruction" not in said.err
    with pytest.raises(
        CheckpointError, match="outputs/NAME does not exist. .*zoo:centernet.*: python -m scripts.zoo$"
    ):
        predict(["run=outputs/NAME", f"images={image}"])
    with pytest.raises(ValueError, match=re.escape(f"write images={image}")):
        predict(["run=zoo:fcos-shapes-afl", str(image)])
    with pytest.raises(ValueError, match="needs zoo:NAME"):
        copy = tmp_path / "mine.safetensors"
        copy.write_bytes(zoo_file(NAMES[0]).read_bytes())
        predict(["demo", f"run={copy}"])


def test_a_photo_without_objects_of_the_detector_is_answered_with_what_it_knows(tmp_path, capsys):
    import cv2

    cv2.imwrite(str(tmp_path / "grey.jpg"), np.full((120, 160, 3), 128, np.uint8))
    run = "zoo:fcos-foda-fl"
    assert predict([f"run={run}", f"images={tmp_path}/grey.jpg", f"output={tmp_path}/found"]) == 0
    said = capsys.readouterr()
    assert f"{run} knows 31 classes of foda only: " in said.err and "Battery" in said.err
    assert "nothing was found; a lower score" in said.out


def test_torch_hub_loads_a_checkout(tmp_path):
    program = (
        f"import torch; p = torch.hub.load(r'{ROOT}', 'detector', 'fcos-shapes-afl', device='cpu', source='local');"
        f"print(len(p.names), torch.hub.load(r'{ROOT}', 'zoo', source='local')[0])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["30", NAMES[0]], done.stderr


def test_make_skips_existing_files_and_continues_after_a_failure(tmp_path, monkeypatch, capsys):
    spec = {
        "entries": {
            name: {"detector": "fcos", "loss": name, "dataset": "shapes"}
            for name in ("fl", "cbl", "afl", "ohem")
        },
        "images": {"shapes_lvis": 5},
    }
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump(spec))
    (tmp_path / "fl.safetensors").write_text("")
    made = []

    def run(config, wait):
        if config.cell.loss == "cbl":
            raise OSError("disk is full")
        return SimpleNamespace(key=f"key-{config.cell.loss}")

    def make(name, folder, zoo, *, command, images):
        made.append((name, folder.name, command.split()[-3:], images))
        (zoo / f"{name}.safetensors").write_text("")
        return zoo / f"{name}.safetensors"

    monkeypatch.setattr(command, "SPEC", tmp_path / "zoo.yaml")
    monkeypatch.setattr("afl.training.run_cell", run)
    monkeypatch.setattr("afl.zoo.make.make_entry", make)
    assert command.main(["make", "names=[fl,cbl,afl]", f"zoo={tmp_path}", "logger=none"]) == 1
    assert made == [("afl", "key-afl", ["loss=afl", "dataset=shapes_lvis", "seed=0"], 5)]
    said = capsys.readouterr()
    assert "1 of 3 entries exist" in said.out and "cbl failed: disk is full" in said.err
    assert said.err.endswith("not made: cbl\n")
    assert command.main(["make", f"zoo={tmp_path}", "logger=none", "names=[fl,afl]"]) == 0 and len(made) == 1


def test_an_entry_from_a_run_gives_the_detections_of_the_run(tmp_path, monkeypatch):
    from afl.training import run_cell
    from afl.training.compose import compose_cell

    config = compose_cell(
        detector="retinanet",
        loss="afl",
        overrides=[
            "dataset=shapes_lvis", "dataset.folder.num_train=24", "dataset.folder.num_val=10", "initial_weights=null",
            "logger=none", "trainer.progress=none", "trainer.batch_size=4", "trainer.max_duration=3steps", "trainer.device=cpu",
            f"paths.output={tmp_path}/outputs", f"paths.cache={tmp_path}/cache",
        ],
    )  # fmt: skip
    record = run_cell(config)
    run = tmp_path / "outputs" / record.key
    for wrong, words in (("images=-1", "must not be negative"), ("name=a/b", "must not contain a slash")):
        with pytest.raises(ValueError, match=words):
            command.main(["add", f"run={run}", wrong, f"zoo={tmp_path}/wrong"])
    command.main(["add", f"run={run}", "images=99", f"zoo={tmp_path}/all"])
    all_kept, _ = read_entry(tmp_path / "all" / "retinanet-shapes-afl.safetensors")
    assert all_kept.kept["images"] == 10
    command.main(["add", "name=mine", f"run={run}", "images=3", f"zoo={tmp_path}/zoo"])
    path = tmp_path / "zoo" / "mine.safetensors"
    entry, _ = read_entry(path)
    assert entry.run["key"] == record.key and entry.step == 3
    start, *arguments = entry.command.removeprefix("python -m ").split()
    again = compose_cell(detector="retinanet", loss="afl", overrides=shlex.split(" ".join(arguments))[2:])
    # Settings of the data are part of its fingerprint, not of the command.
    assert start == "scripts.train" and not differing(
        record.config, OmegaConf.to_container(again, resolve=True)
    )
    assert str(tmp_path) not in json.dumps(entry.about["config"])
    assert len(list((tmp_path / "zoo" / "images" / "shapes_lvis").glob("*.png"))) == 3
    ours, theirs = load_predictor(path, device="cpu"), load_predictor(run, device="cpu")
    assert ours.names == theirs.names
    state = theirs.detector.state_dict()
    for key, value in ours.detector.state_dict().items():
        expected = state[key]
        if value.is_floating_point() and value.dim() > 1:
            expected = expected.to(torch.bfloat16).float()
        assert torch.equal(value, expected), key
    predict(
        [
            f"run={path}",
            f"images={next(iter((tmp_path / 'zoo' / 'images').rglob('*.png')))}",
            f"output={tmp_path}/found",
        ]
    )


def test_kept_images_with_one_file_name_in_two_folders_stay_apart(tmp_path):
    folder = tmp_path / "set"
    images = []
    for number, camera in enumerate(("cam0", "cam1"), start=7):
        (folder / camera).mkdir(parents=True)
        cv2.imwrite(str(folder / camera / "0.png"), np.full((40, 40, 3), number, np.uint8))
        images.append({"id": number, "file_name": f"{camera}/0.png", "width": 40, "height": 40})
    box = {"image_id": 7, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0, "id": 1}
    truth = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "bird"}]}
    (folder / "all.json").write_text(json.dumps(truth))
    names = [image["file_name"] for image in make._truth(read_coco(folder / "all.json", folder))["images"]]
    assert names == ["7_0.png", "8_0.png"]
