"""Predictions on image files with a checkpoint outside its run, compared with the evaluation of that run and with
the written file as pycocotools reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from afl.predict import SCORE, load_predictor
from afl.training import run_cell
from afl.training.checkpoint import CheckpointError, load_checkpoint
from afl.training.compose import compose_cell
from afl.training.data import read_data
from afl.training.detect import TestTime
from datasets import read_image
from scripts.predict import DEFAULTS, main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run, its validation images, the detections of its evaluation, and its checkpoint in a separate folder."""
    folder = tmp_path_factory.mktemp("run")
    config = compose_cell(
        detector="retinanet",
        loss="fl",
        overrides=[
            "dataset=shapes_coco", "dataset.folder.num_train=24", "dataset.folder.num_val=10", "initial_weights=null",
            "logger=none", "trainer.progress=none", "trainer.batch_size=4", "trainer.eval_batch_size=2",
            "trainer.max_duration=4steps", "trainer.device=cpu", "trainer.precision=fp32", "trainer.ema=0.5",
            "detector.score_threshold=0.001", f"paths.output={folder}/outputs", f"paths.cache={folder}/cache",
        ],
    )  # fmt: skip
    record = run_cell(config)
    directory = Path(config.paths.output) / record.key
    alone = folder / "elsewhere" / "weights.pt"
    alone.parent.mkdir()
    shutil.copy(directory / "checkpoints" / "last.pt", alone)
    val = read_data(config).val
    return directory, alone, val, json.loads((directory / "detections.json").read_text())


def as_rows(found, image_id: int, category_ids) -> np.ndarray:
    """Rows (n, 7) of image id, category id, x, y, width, height, score."""
    boxes = found.boxes.numpy().astype(float)
    ids = np.array([category_ids[label] for label in found.labels.tolist()], float)
    return np.column_stack(
        [np.full(len(ids), image_id), ids, boxes[:, :2], boxes[:, 2:] - boxes[:, :2], found.scores.numpy()]
    )


def test_three_lines_of_python_give_the_detections_of_the_evaluation(run):
    directory, alone, val, detections = run
    predictor = load_predictor(alone, batch_size=4)
    found = predictor([val.image_path(i) for i in range(len(val))], score=0)
    rows = [as_rows(one, int(val.image_ids[i]), predictor.category_ids) for i, one in enumerate(found)]
    expected = np.array([[d["image_id"], d["category_id"], *d["bbox"], d["score"]] for d in detections])
    assert len(expected) > 50
    ours = np.concatenate(rows)
    # Both are sorted by image and descending score; equal scores have no defined order.
    order = lambda a: a[np.lexsort((a[:, 2].round(2), -a[:, 6].round(5), a[:, 0]))]  # noqa: E731
    np.testing.assert_allclose(order(ours), order(expected), atol=2e-3)
    assert predictor.names == tuple(val.category_names) and predictor.step == 4
    assert torch.equal(
        predictor(read_image(val, 0), score=0).boxes, predictor(val.image_path(0), score=0).boxes
    )


def test_the_command_writes_pictures_and_a_file_that_pycocotools_reads(run, tmp_path, capsys):
    directory, alone, val, _ = run
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    shutil.copy(val.image_path(0), photos / f"first{val.image_path(0).suffix}")
    tall = np.ascontiguousarray(np.pad(read_image(val, 1), ((0, 40), (0, 0), (0, 0)))[..., ::-1])
    cv2.imwrite(str(photos / "more" / "tall.png"), tall)
    (photos / "notes.txt").write_text("not an image, and not looked at")
    arguments = [f"run={directory}", f"images={photos}", f"output={tmp_path}/found", "score=0.016", "batch=1"]
    assert main(arguments) == 0
    truth = COCO(str(tmp_path / "found" / "detections.json"))
    assert [image["file_name"] for image in truth.dataset["images"]] == [
        f"first{val.image_path(0).suffix}", "more/tall.png",
    ]  # fmt: skip
    assert [image["height"] for image in truth.dataset["images"]] == [96, 136]
    predictor = load_predictor(directory)
    found = predictor(photos / "more" / "tall.png", score=0)
    kept = found.scores >= 0.016
    written = truth.loadAnns(truth.getAnnIds(imgIds=[2]))
    assert 0 < len(written) == int(kept.sum())
    assert [a["score"] for a in written] == pytest.approx(found.scores[kept].tolist())
    assert max(a["bbox"][1] + a["bbox"][3] for a in written) <= 136
    assert {c["name"] for c in truth.dataset["categories"]} == set(val.category_names)
    assert cv2.imread(str(tmp_path / "found" / "more" / "tall.png")).shape[0] >= 600
    assert "2 images" in capsys.readouterr().out
    assert main([*arguments, "flip=true", "scales=[1.0,1.5]", "pictures=false"]) == 0


def test_exif_orientation_is_applied(run, tmp_path):
    from PIL import Image

    _, alone, val, _ = run
    pixels = read_image(val, 2)[:64]
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # stored rotated: to be turned clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    predictor = load_predictor(alone)
    upright = predictor(np.rot90(pixels, -1), score=0)
    assert torch.equal(predictor(tmp_path / "turned.png", score=0).boxes, upright.boxes)


def test_mirrored_images_have_mirrored_detections_with_flip(run):
    _, alone, val, _ = run
    predictor = load_predictor(alone, test_time=TestTime(flip=True))
    pixels = read_image(val, 0)
    there, back = predictor(pixels, score=0), predictor(pixels[:, ::-1], score=0)
    width = pixels.shape[1]
    mirrored = torch.stack([width - back.boxes[:, 2], back.boxes[:, 0] * 0, width - back.boxes[:, 0]], 1)
    assert len(there.scores) == len(back.scores)
    torch.testing.assert_close(there.scores.sort().values, back.scores.sort().values, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        there.boxes[:, 0].sort().values, mirrored[:, 0].sort().values, atol=0.05, rtol=0
    )


def test_images_are_not_overwritten_and_drawn_pictures_are_not_read(run, tmp_path, monkeypatch):
    _, alone, val, _ = run
    suffix = val.image_path(0).suffix
    photo = tmp_path / f"street{suffix}"
    shutil.copy(val.image_path(0), photo)
    before = photo.read_bytes()
    monkeypatch.chdir(tmp_path)
    for images in (f"street{suffix}", "."):
        refused([f"run={alone}", f"images={images}", "output=."], ValueError, "would be written over")
    assert main([f"run={alone}", "images=.", "output=.", "pictures=false"]) == 0
    assert (tmp_path / "detections.json").is_file() and photo.read_bytes() == before
    for _ in range(2):  # the second time, the picture of the first call is in the folder of images
        assert main([f"run={alone}", "images=.", "output=found"]) == 0
        content = json.loads((tmp_path / "found" / "detections.json").read_text())
        assert [image["file_name"] for image in content["images"]] == [photo.name]
    assert photo.read_bytes() == before and (tmp_path / "found" / photo.name).is_file()


def test_a_folder_gives_every_image_that_can_be_read_and_names_the_others(run, tmp_path, capsys):
    from PIL import Image

    _, alone, val, _ = run
    folder, suffixes = tmp_path / "photos", ("gif", "ppm", "bmp", "webp", "tif", "jp2", "png")
    folder.mkdir()
    for suffix in suffixes:
        Image.open(val.image_path(0)).convert("RGB").save(folder / f"a.{suffix}")
    (folder / "link.jpg").symlink_to("gone.jpg")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(val.image_path(0), elsewhere / "z.png")
    (folder / "folder.png").symlink_to(elsewhere)
    assert main([f"run={alone}", f"images={folder}", f"output={tmp_path}/found", "pictures=false"]) == 1
    content = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [
        *sorted(f"a.{suffix}" for suffix in suffixes),
        "folder.png/z.png",
    ]
    named = capsys.readouterr().err
    assert "link.jpg cannot be read: No such file or directory" in named and "z.png" not in named


def refused(arguments: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)


def test_bad_input_gives_one_line(run, tmp_path, capsys):
    directory, alone, val, _ = run
    empty = tmp_path / "empty"
    empty.mkdir()
    to = f"output={tmp_path}/out"
    refused([f"run={alone}", f"images={empty}", to], FileNotFoundError, "empty: the folder has no image")
    refused([f"run={alone}", f"images={tmp_path}/gone.png", to], FileNotFoundError, "no such file or folder")
    refused([f"run={empty}", f"images={val.image_path(0)}", to], CheckpointError, "not a run directory")
    refused(
        [f"run={val.image_path(0)}", f"images={val.image_path(0)}", to], CheckpointError, "cannot be read"
    )
    torch.save({"model": {}}, tmp_path / "other.pt")
    refused(
        [f"run={tmp_path}/other.pt", f"images={val.image_path(0)}", to], CheckpointError, "not written by"
    )
    state = load_checkpoint(alone)
    del state["about"]
    torch.save(state, tmp_path / "old.pt")
    refused(
        [f"run={tmp_path}/old.pt", f"images={val.image_path(0)}", to],
        CheckpointError,
        "no config and no class names",
    )
    refused([f"images={empty}"], ValueError, "which run")
    refused([f"run={alone}", f"images={val.image_path(0)}", "scor=1"], ValueError, "Did you mean score")
    refused([f"run={alone}", f"images={val.image_path(0)}", "score=2"], ValueError, "from 0 to 1")
    refused([f"run={alone}", f"images={val.image_path(0)}", "flip=maybe", to], ValueError, "flip is 'maybe'")
    refused([f"run={alone}", f"images={val.image_path(0)}", "scales=2", to], ValueError, "a list such as")
    refused([f"run={alone}", f"images={val.image_path(0)}", "batch=many", to], ValueError, "a whole number")
    refused([f"run={alone}", f"images={val.image_path(0)}", "batch=0", to], ValueError, "batch is 0; it")
    for scales in ("[]", "[0]", "[1.0,-1]", "[true]"):
        refused(
            [f"run={alone}", f"images={val.image_path(0)}", f"scales={scales}", to],
            ValueError,
            r"scales is \[.*\]; it must be a list of positive numbers",
        )
    for device in ("warp", "mps", "meta"):  # torch knows the last two
        refused(
            [f"run={alone}", f"images={val.image_path(0)}", f"device={device}", to],
            ValueError,
            f"device is '{device}'; it needs auto, cpu, cuda or a GPU such as cuda:1",
        )
    with pytest.raises(ValueError, match="uint8 RGB"):
        load_predictor(alone)(np.zeros((4, 4), np.uint8))
    assert not (tmp_path / "out").exists()


def test_the_default_score_is_that_of_the_command(run):
    _, alone, val, _ = run
    predictor = load_predictor(alone)
    everything = predictor(val.image_path(0), score=0)
    assert DEFAULTS["score"] == SCORE and everything.scores.min() < 0.016 < everything.scores.max()
    kept = predictor(val.image_path(0), score=0.016)
    assert len(kept.scores) == int((everything.scores >= 0.016).sum()) > 0
    assert len(predictor(val.image_path(0)).scores) == int((everything.scores >= 0.3).sum())
    with pytest.raises(ValueError, match="from 0 to 1"):
        predictor(val.image_path(0), score=2)


def _no_model(state):
    del state["model"], state["average"]


def _wrong_shape(state):
    name = next(iter(state["average"]))
    name = next(name for name in state["average"] if name.endswith("weight"))
    state["average"][name] = torch.zeros(3)


def _foreign_weight(state):
    state["average"]["module.extra"] = torch.zeros(3)


def _missing_weight(state):
    del state["average"][next(name for name in state["average"] if name.endswith("weight"))]


def _not_finite(state):
    for value in state["average"].values():
        if value.is_floating_point():
            value.fill_(float("nan"))


def _few_names(state):
    state["about"]["names"] = state["about"]["names"][:2]


def _environment(state):
    state["about"]["config"]["loss"]["_target_"] = "${oc.env:HOME}"


def _generator(state):
    state["about"]["config"]["loss"] = {"_target_": "datasets.generate_shapes", "root": "made", "seed": 0}


def _tracker_in_transform(state):
    state["about"]["config"]["dataset"]["eval_transform"]["dense"] = {"_target_": "afl.tracking.WandbTracker"}


def _no_config(state):
    state["about"]["config"] = 3


def _empty_config(state):
    state["about"]["config"] = {}


@pytest.mark.parametrize(
    ("change", "words"),
    [(_no_model, "complete state of a run"), (_wrong_shape, "has shape"), (_foreign_weight, "extra"), (_missing_weight, "weight"),
     (_not_finite, "not finite"), (_few_names, "2 names"), (_environment, "config.loss._target_ refers to something else"),
     (_generator, "cannot call it"), (_tracker_in_transform, "cannot call it"), (_no_config, "has no config"), (_empty_config, "builds no detector")],
)  # fmt: skip
def test_a_malformed_or_foreign_checkpoint_gives_one_line_and_calls_nothing(
    run, tmp_path, monkeypatch, change, words
):
    _, alone, val, _ = run
    state = load_checkpoint(alone)
    change(state)
    torch.save(state, tmp_path / "other.pt")
    monkeypatch.chdir(tmp_path)
    refused([f"run={tmp_path}/other.pt", f"images={val.image_path(0)}", "output=out"], CheckpointError, words)
    assert [path.name for path in tmp_path.iterdir()] == ["other.pt"]


def test_a_damaged_image_is_named_and_the_others_are_processed(run, tmp_path, capsys):
    _, alone, val, _ = run
    shutil.copy(val.image_path(0), tmp_path / "b.png")
    (tmp_path / "a.jpg").write_text("no image at all")
    assert main([f"run={alone}", f"images={tmp_path}", f"output={tmp_path}/out"]) == 1
    assert "a.jpg is not an image" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())["images"]) == 1
    assert main([f"run={alone}", f"images={tmp_path}/a.jpg", f"output={tmp_path}/none"]) == 1
    assert not (tmp_path / "none").exists()
