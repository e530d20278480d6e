"""Whole runs: the record, bit-identical resuming, failures, two processes, and the commands that use runs."""

import ast
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from afl.config import CONF
from afl.tracking import read_record
from afl.training import ConfigError, run_cell
from afl.training.build import check_targets
from afl.training.data import read_data
from afl.training.guard import NonFiniteLoss
from afl.training.lock import LOCK, RunBusy, run_lock
from datasets import DataError
from scripts import prepare_data

ROOT = CONF.parent
DETECTORS = sorted(path.stem for path in (CONF / "detector").glob("*.yaml"))
LOSSES = sorted(
    str(path.relative_to(CONF / "loss").with_suffix("")) for path in (CONF / "loss").rglob("*.yaml")
)


def weights(config, record) -> dict[str, torch.Tensor]:
    path = f"{config.paths.output}/{record.key}/checkpoints/last.pt"
    return torch.load(path, weights_only=True)["model"]


def assert_same_weights(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_a_run_writes_a_complete_record_and_pycocotools_confirms_its_metrics(small_cell):
    config = small_cell("retinanet", "afl")
    record = run_cell(config)
    folder = f"{config.paths.output}/{record.key}"
    again = read_record(f"{folder}/record.json")
    assert again == record and again.status == "finished" and again.steps == 9
    assert again.train_seconds > 0 and again.peak_memory_bytes > 0 and again.parameters > 1000
    assert set(again.per_class) == set(again.groups) and len(again.groups) == 30
    for name in ("config.yaml", "metrics.jsonl", "detections.json", "predictions.png", "checkpoints/last.pt"):
        assert os.path.getsize(f"{folder}/{name}") > 0
    truth = COCO()
    truth.dataset = read_data(config).val.coco_dict()
    truth.createIndex()
    if json.load(open(f"{folder}/detections.json")):
        evaluation = COCOeval(truth, truth.loadRes(f"{folder}/detections.json"), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(record.metrics["AP"], abs=1e-6)


def test_a_finished_run_is_not_trained_again(small_cell, monkeypatch):
    config = small_cell()
    first = run_cell(config)
    monkeypatch.setattr("afl.training.run.train", lambda *_: pytest.fail("trained again"))
    assert run_cell(config) == first


@pytest.mark.parametrize("loss", ["fl", "afl_per_class"])
def test_resumed_weights_are_bit_identical_to_uninterrupted_ones(small_cell, monkeypatch, loss):
    options = ("trainer.ema=0.9", "trainer.accumulate=2")
    whole = small_cell("centernet", loss, *options)
    expected = weights(whole, run_cell(whole))
    broken = small_cell("centernet", loss, *options, f"paths.output={whole.paths.output}/broken")

    class Killed(BaseException):
        pass

    from afl.training import loop

    def stop_at_five(optimizer, base, factor, real=loop.set_learning_rate):
        stop_at_five.steps += 1
        if stop_at_five.steps == 6:
            raise Killed
        real(optimizer, base, factor)

    stop_at_five.steps = 0
    monkeypatch.setattr(loop, "set_learning_rate", stop_at_five)
    with pytest.raises(Killed):
        run_cell(broken)
    monkeypatch.undo()
    record = run_cell(broken)
    assert_same_weights(weights(broken, record), expected)
    steps = [json.loads(line)["step"] for line in open(f"{broken.paths.output}/{record.key}/metrics.jsonl")]
    assert steps == sorted(steps) and set(steps) == set(range(1, 10))


def test_a_killed_run_ends_with_the_same_weights_after_a_restart(small_cell, tmp_path):
    config = small_cell("centernet", "afl", "trainer.max_duration=60steps")
    expected = weights(config, run_cell(config))
    other = tmp_path / "killed"
    command = [
        sys.executable, "-m", "scripts.train", "detector=centernet", "loss=afl", "dataset=shapes_coco",
        "dataset.folder.num_train=24", "dataset.folder.num_val=10", "initial_weights=null", "logger=none",
        "trainer.progress=none", "trainer.batch_size=4", "trainer.eval_batch_size=4", "trainer.max_duration=60steps",
        "trainer.checkpoint_every=3steps", "trainer.log_every=1steps", "trainer.device=cpu",
        f"paths.output={other}", f"paths.cache={config.paths.cache}",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        logs = list(other.glob("*/metrics.jsonl"))
        if logs and logs[0].read_text().count("\n") >= 8:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not list(other.glob("*/record.json"))
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (path,) = other.glob("*/checkpoints/last.pt")
    assert_same_weights(torch.load(path, weights_only=True)["model"], expected)


def test_a_non_finite_loss_stops_the_run_and_names_images_and_terms(small_cell):
    config = small_cell("centernet", "fl", "optimizer.factory.lr=1e30", "trainer.clip_norm=null")
    with pytest.raises(NonFiniteLoss, match=r"step \d+ \(.*heat.*\) on images \["):
        run_cell(config)
    (path,) = Path(config.paths.output).glob("*/non_finite_step*.pt")
    saved = torch.load(path, weights_only=True)
    assert saved["images"].shape[0] == len(saved["image_ids"]) == 4
    (record_path,) = Path(config.paths.output).glob("*/record.json")
    assert read_record(record_path).status == "failed"


def test_replaying_the_saved_batch_gives_the_same_terms(small_cell, monkeypatch, capsys):
    from afl.training.checkpoint import CheckpointError
    from scripts.replay import main

    config = small_cell("retinanet", "afl", "optimizer.factory.lr=1e4", "trainer.clip_norm=null")
    with pytest.raises(NonFiniteLoss) as stopped:
        run_cell(config)
    (path,) = Path(config.paths.output).glob("*/non_finite_step*.pt")
    assert f"replay file={path}" in str(stopped.value)
    main([f"file={path}"])
    printed = capsys.readouterr().out
    saved = torch.load(path, weights_only=True)
    assert f"step {saved['step']}, images {saved['image_ids'].tolist()}" in printed
    for name, value in saved["losses"].items():
        assert any(name in line and f"{float(value):g}" in line for line in printed.splitlines()), printed
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not the saved batch"):
        main([f"file={path}"])


def test_a_failed_run_is_tried_again(small_cell, monkeypatch):
    config = small_cell()
    with monkeypatch.context() as broken:
        broken.setattr(
            "afl.training.run.contact_sheet", lambda *_: (_ for _ in ()).throw(OSError("disk is full"))
        )
        with pytest.raises(OSError):
            run_cell(config)
    assert run_cell(config).status == "finished"


def test_a_locked_run_is_not_changed(small_cell, tmp_path):
    with run_lock(tmp_path / "run", wait=False):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert "is being run by process" in pool.apply(_try_lock, (str(tmp_path / "run"),))
    with run_lock(tmp_path / "run", wait=False):
        pass


def test_a_run_directory_that_cannot_be_written_is_named_with_the_setting(tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "run"
    with (
        pytest.raises(OSError, match=f"{folder} cannot be written .Not a directory.; set paths.output"),
        run_lock(folder, wait=False),
    ):
        pass
    (tmp_path / "run" / LOCK).mkdir(parents=True)
    with pytest.raises(OSError, match="set paths.output"), run_lock(tmp_path / "run", wait=False):
        pass


def _try_lock(folder: str) -> str:
    try:
        with run_lock(Path(folder), wait=False):
            return "got it"
    except RunBusy as busy:
        return str(busy)


def test_the_evaluate_command_reproduces_the_figures_of_the_record(small_cell, capsys):
    from scripts.evaluate import main

    config = small_cell("retinanet")
    record = run_cell(config)
    folder = f"{config.paths.output}/{record.key}"
    main([f"run={folder}"])
    found = json.load(open(f"{folder}/evaluation.json"))
    assert {name: found[name] for name in record.metrics} == record.metrics
    assert "blue" in capsys.readouterr().out


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_every_detector_composes_and_runs_a_step_on_every_kind_of_backbone(small_cell, detector, backbone):
    overrides = [f"backbone={backbone}", "trainer.max_duration=1steps", "dataset.extreme_source=box_sides"]
    if backbone == "resnet18":
        overrides += [
            "backbone.pretrained=false",
            "backbone.frozen_batch_norm=false",
            "backbone.frozen_stages=0",
        ]
    record = run_cell(small_cell(detector, "fl", *overrides))
    assert record.status == "finished"


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_composes_and_runs_two_steps(small_cell, loss):
    assert run_cell(small_cell("retinanet", loss, "trainer.max_duration=2steps")).status == "finished"


def test_a_config_only_calls_this_project_and_torchs_optimisers(small_cell):
    config = small_cell()
    check_targets(config)
    config.loss._target_ = "os.system"
    with pytest.raises(ConfigError, match="os.system"):
        check_targets(config)


@pytest.mark.parametrize(
    "target",
    ["os.system", "subprocess.Popen", "builtins.eval", "afl.training.lock.os.system", "datasets.files.shutil.rmtree",
     "torch.optim.adamw.torch.load", "hydra.utils.call", "aflx.System", "torch.hub.load", "afl.tracking.write_text",
     "afl.tracking.MetricsLog", "afl.training.run_cell", "afl.training.checkpoint.set_aside",
     "datasets.files.remove_abandoned", "datasets.index_cache.load_index", "detectors.load_features",
     "afl.losses.ClassificationLoss.forward.__globals__.get", "afl.reporting.server.connect"],
)  # fmt: skip
def test_a_config_cannot_call_imported_functions_or_functions_that_write_files(target):
    with pytest.raises(ConfigError, match=f"loss.chain.a._target_ is '{target}'"):
        check_targets(OmegaConf.create({"loss": {"chain": {"a": {"_target_": target, "_partial_": True}}}}))


def test_reading_data_leaves_the_config_as_it_was(small_cell):
    config = small_cell("fcos", "fl")
    before = OmegaConf.to_yaml(config)
    read_data(config)
    assert OmegaConf.to_yaml(config) == before and "${dataset.seed}" in before


def test_a_foreign_target_on_the_command_line_gives_one_line(tmp_path, capfd):
    mark = tmp_path / "mark"
    small = ["dataset=shapes", "dataset.folder.num_train=24", "dataset.folder.num_val=10"]
    small += [f"paths.cache={tmp_path}/cache", f"paths.output={tmp_path}/outputs"]
    train = ["detector=fcos", "loss=fl", "initial_weights=null", "logger._target_=os.system", *small]
    found = subprocess.run(
        [sys.executable, "-m", "scripts.train", *train], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode in (1, 2)
    foreign = ["dataset.train._target_=os.system", f"+dataset.train.command=touch {mark}"]
    assert prepare_data.main(["check", *foreign, *small]) == 2 and not mark.exists()
    for said in (found.stderr, capfd.readouterr().err):
        assert "_target_ is 'os.system'; this part" in said and "Traceback" not in said
        assert len(said.strip().splitlines()) == 1


def test_files_are_read_as_data_and_never_as_code():
    """Every file uses ``torch.load`` with ``weights_only`` and ``np.load`` without pickles, and no other way to run code."""
    loads = 0
    for path in [
        p for folder in ("afl", "datasets", "detectors", "scripts") for p in (ROOT / folder).rglob("*.py")
    ]:
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if name in ("torch.load", "np.load"):
                loads += 1
                expected = ("weights_only", "True") if name == "torch.load" else ("allow_pickle", "False")
                assert given.get(expected[0]) == expected[1], f"{path}: {ast.unparse(call)}"
            assert name not in (
                "eval",
                "exec",
                "pickle.load",
                "pickle.loads",
                "yaml.load",
                "torch.hub.load",
            ), path
    assert loads >= 4


def test_invalid_initial_weights_give_one_line(small_cell, tmp_path):
    text, other = tmp_path / "text.pt", tmp_path / "other.pt"
    text.write_text("no weights")
    torch.save({"backbone.weight": torch.ones(3)}, other)  # as torchvision saves them
    for path in (text, other):
        with pytest.raises(ConfigError, match="no readable weights under 'model'") as refused:
            run_cell(small_cell("centernet", "fl", f"initial_weights={path}"))
        assert "\n" not in str(refused.value) and "weights_only" not in str(refused.value)


def test_damaged_features_are_detected_before_a_run_starts_from_them(small_cell, monkeypatch):
    from afl.training.checkpoint import CheckpointError

    made = small_cell("centernet", "fl", "trainer.max_duration=1steps")
    path = Path(made.paths.output) / run_cell(made).key / "checkpoints" / "last.pt"
    data = bytearray(path.read_bytes())
    weights = torch.load(path, weights_only=True)["model"]["backbone.stem.0.weight"]
    data[data.find(weights.flatten()[:8].numpy().tobytes()) + 2] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr("afl.training.features.FEATURES", path.parent / "none")
    monkeypatch.setattr("afl.training.run.pretrain", lambda *_, **__: path)
    with pytest.raises(
        CheckpointError, match="features cannot be used: .*checksum.*delete .*to train them again"
    ):
        run_cell(small_cell("centernet", "fl", "initial_weights=shapes"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_gives_one_line_in_every_process(small_cell, workers):
    config = small_cell("centernet", "fl", "trainer.max_duration=1steps")
    run_cell(config)
    (image,) = Path(config.paths.cache).glob("shapes/shapes-*/JPEGImages/000003.png")
    image.write_bytes(image.read_bytes()[:50])
    with pytest.raises(DataError) as refused:
        run_cell(small_cell("centernet", "fl", f"trainer.num_workers={workers}"))
    assert str(refused.value) == (
        f"image {image} (id 3) is damaged and cannot be decoded; fetch the image again, or set dataset.policy=skip to "
        "leave such records out"
    )


def test_run_keys_depend_on_the_loss_but_not_on_paths(small_cell, tmp_path):
    from afl.training.data import read_data
    from afl.training.run_identity import cell_key

    def key(*arguments: str) -> str:
        config = small_cell(*arguments)
        return cell_key(OmegaConf.to_container(config, resolve=True), read_data(config)).name

    assert key("centernet", "fl") != key("centernet", "afl")
    assert key("centernet", "fl") != key("centernet", "fl", "loss.gamma=1.5")
    assert key("centernet", "fl") == key(
        "centernet", "fl", f"paths.output={tmp_path}/elsewhere", "trainer.num_workers=3"
    )


def test_batches_that_cannot_be_divided_evenly_are_rejected(small_cell):
    with pytest.raises(ConfigError, match="cannot be divided evenly"):
        run_cell(small_cell("centernet", "fl", "trainer.accumulate=3"))


def test_evaluator_figures_do_not_depend_on_the_batch_size(small_cell):
    first = run_cell(small_cell("centernet", "fl", "trainer.eval_batch_size=8", "trainer.precision=fp32"))
    second = run_cell(small_cell("centernet", "fl", "trainer.eval_batch_size=3", "trainer.precision=fp32"))
    assert first.metrics == pytest.approx(second.metrics, abs=1e-3)


def test_extremenet_without_masks_stops_before_training(small_cell, monkeypatch):
    monkeypatch.setattr("afl.training.run.train", lambda *_: pytest.fail("trained"))
    overrides = ("dataset=shapes_voc", "dataset.extreme_source=null", "initial_weights=shapes")
    with pytest.raises(DataError, match="dataset.extreme_source=box_sides"):
        run_cell(small_cell("extremenet", "fl", *overrides))


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(small_cell, monkeypatch):
    from afl.training import loop

    def poisoned(parameters, limit, real=loop.nn.utils.clip_grad_norm_):
        parameters = list(parameters)
        if poisoned.steps == 4:
            parameters[0].grad[0] = float("nan")
        poisoned.steps += 1
        return real(parameters, limit)

    poisoned.steps = 0
    monkeypatch.setattr(loop.nn.utils, "clip_grad_norm_", poisoned)
    config = small_cell("centernet", "fl")
    with pytest.raises(NonFiniteLoss, match="gradient norm is not finite at step 4"):
        run_cell(config)
    (path,) = Path(config.paths.output).glob("*/checkpoints/last.pt")
    assert all(torch.isfinite(value).all() for value in torch.load(path, weights_only=True)["model"].values())
