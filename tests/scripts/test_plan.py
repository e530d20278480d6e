"""Plans compared with manual computations: runs, finished runs, disk, and hours from records, measurements and published speeds."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import time

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from afl.config import CONF
from afl.tables import actions
from afl.tables import speed as speeds
from afl.tables.cells import compose_rows
from afl.tables.plan import DETECTION_BYTES, FEATURES, Plan, Row, plan
from afl.tracking import Record, environment, write_record
from afl.training import ConfigError, run_cell
from afl.training.compose import compose_cell
from afl.training.cost import Throughput, network_cost, training_size
from afl.training.features import pretraining_config
from datasets import DataError
from datasets.releases import PUBLISHED, SIZES
from scripts.table import main

SMALL = [
    "dataset.folder.num_train=24", "dataset.folder.num_val=10", "initial_weights=null", "logger=none",
    "trainer.max_duration=2steps", "trainer.batch_size=4", "trainer.device=cpu", "trainer.pictures=0",
]  # fmt: skip


def tables(tmp_path, *overrides: str, small: bool = True):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cells = ["overrides=[" + ",".join(f"'{text}'" for text in SMALL) + "]"] if small else []
        return compose(
            "tables",
            overrides=[
                "action=plan", "table.detectors=[centernet]", "table.losses=[fl,afl]", f"results={tmp_path}/results",
                f"paths.output={tmp_path}/outputs", f"paths.cache={tmp_path}/cache", f"paths.data={tmp_path}/data",
                *cells, *overrides,
            ],
        )  # fmt: skip


@pytest.fixture
def done(tmp_path):
    """One finished run of two, whose record has 50 images per second and an evaluation of 3 seconds."""
    paths = [f"paths.output={tmp_path}/outputs", f"paths.cache={tmp_path}/cache"]
    config = compose_cell(detector="centernet", loss="fl", overrides=["dataset=shapes_lvis", *paths, *SMALL])
    record = dataclasses.replace(run_cell(config), images_per_second=50.0, eval_seconds=3.0, steps=50)
    write_record(f"{config.paths.output}/{record.key}/record.json", record)
    return record


def test_runs_of_the_same_network_on_this_device_give_the_hours(done, tmp_path, monkeypatch):
    monkeypatch.setattr(speeds, "measure_throughput", lambda *_, **__: pytest.fail("measured"))
    (row,) = plan(tables(tmp_path), [0, 1, 2]).rows
    # 2 steps of 4 images at 50 images per second, and the evaluation
    hours = (8 / 50 + 3) / 3600
    assert (row.runs, row.done, row.device) == (6, 1, environment()["device"])
    assert row.hours_each == pytest.approx(hours) and row.hours_left == pytest.approx(5 * hours)
    assert row.source == "measured: 1 finished run; measured: 1 finished run with other losses"
    checkpoint = (tmp_path / "outputs" / done.key / "checkpoints" / "last.pt").stat().st_size
    assert row.bytes_each == pytest.approx(2 * checkpoint + 10 * 100 * DETECTION_BYTES, rel=0.15)


def test_a_post_hoc_remedy_is_only_evaluated_if_the_table_has_focal_loss(done, tmp_path):
    (row,) = plan(tables(tmp_path, "table.losses=[fl,norcal]"), [0]).rows
    assert row.hours_left == pytest.approx(3 / 3600)
    (row,) = plan(tables(tmp_path, "table.losses=[afl,norcal]"), [0]).rows
    assert row.hours_left == pytest.approx(2 * (8 / 50 + 3) / 3600)


def test_the_speed_of_a_short_run_is_not_used(done, tmp_path):
    path = tmp_path / "outputs" / done.key / "record.json"
    write_record(path, dataclasses.replace(done, steps=49))
    (row,) = plan(tables(tmp_path), [0]).rows
    assert (row.done, row.source[:8]) == (1, "measured") and "now" in row.source


def test_runs_on_another_device_are_only_used_without_a_measurement(done, tmp_path, monkeypatch):
    path = tmp_path / "outputs" / done.key / "record.json"
    write_record(path, dataclasses.replace(done, environment={**done.environment, "device": "Some GPU"}))
    (row,) = plan(tables(tmp_path, "measure=false"), [0]).rows
    assert (row.device, row.done) == ("Some GPU", 1)
    (row,) = plan(tables(tmp_path), [0]).rows
    assert row.source.startswith("measured now with fl: 4 steps of 4 random images, 96 x 96")
    assert row.device == environment()["device"] and row.hours_left > 0


def test_every_network_is_measured_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        speeds,
        "measure_throughput",
        lambda config, classes, *, batch_size, steps: (
            calls.append(config.cell.loss) or Throughput(10.0, batch_size, steps, (96, 96), "X")
        ),
    )
    (row,) = plan(tables(tmp_path), [0]).rows
    # 8 images, then 10 of the validation split at three times the speed
    assert row.hours_each == pytest.approx((8 / 10 + 10 / 30) / 3600)
    assert (calls, row.device) == (["fl"], "X")


def test_every_view_of_an_image_and_every_variant_of_a_data_set_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(
        speeds,
        "measure_throughput",
        lambda *_, batch_size, steps: Throughput(10.0, batch_size, steps, (96, 96), "X"),
    )
    config = tables(tmp_path, "+table.variants={shapes_lvis:{seed:[0,1,2]}}")
    config.overrides += ["trainer.test_time.scales=[1.0,1.5,2.0]", "trainer.test_time.flip=true"]
    (row,) = plan(config, [0, 1]).rows
    # 8 images, then 10 of the validation split in six views, for two losses, two seeds and three variants
    hours = (8 / 10 + 6 * 10 / 30) / 3600
    assert row.hours_each == pytest.approx(hours)
    assert (row.runs, row.hours_left) == (12, pytest.approx(12 * hours))


@pytest.mark.parametrize(("largest", "used"), [(16, 16), (5, 4), (1, 1), (0, None)])
def test_a_network_that_does_not_fit_is_measured_with_smaller_batches(monkeypatch, largest, used):
    def measured(*_, batch_size, steps):
        if batch_size > largest:
            raise torch.cuda.OutOfMemoryError
        return Throughput(10.0, batch_size, steps, (96, 96), "X")

    monkeypatch.setattr(speeds, "measure_throughput", measured)
    options = ["dataset=shapes", "trainer.batch_size=16"]
    cell = compose_cell(detector="centernet", loss="fl", overrides=options)
    known = speeds.Speeds([], "true", {})
    if used:
        assert f"of {used} random images" in known.of(cell, ["fl"], 30, 1)[0].source
    else:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            known.of(cell, ["fl"], 30, 1)


def test_the_speed_of_several_runs_is_their_median_on_one_device():
    cell = compose_cell(detector="centernet", loss="fl", overrides=["dataset=shapes"])
    plain = OmegaConf.to_container(cell, resolve=True)

    def run(loss: str, speed: float, seconds: float, device: str = "new") -> Record:
        return Record(
            "", "finished", "shapes_lvis", "centernet", loss, 0, plain, environment={"device": device},
            images_per_second=speed, eval_seconds=seconds, steps=840,
        )  # fmt: skip

    records = [run("fl", 900.0, 9.0, "old"), run("afl", 70.0, 7.0)]
    records += [run("fl", speed, seconds) for speed, seconds in ((10.0, 3.0), (60.0, 1.0), (20.0, 2.0))]
    found = speeds.Speeds(records, "false", {}).of(cell, ["fl", "cbl"], 30, 1)
    assert [(one.images_per_second, one.eval_seconds, one.device) for one in found] == [
        (20.0, 2.0, "new"),
        (40.0, 2.5, "new"),
    ]
    assert [one.source for one in found] == [
        "measured: 3 finished runs",
        "measured: 4 finished runs with other losses",
    ]


def test_without_data_records_and_gpu_a_published_speed_is_scaled(tmp_path, monkeypatch, capsys):
    """A CPU would take hours to measure these networks, so it does so only if it is asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(speeds, "measure_throughput", lambda *_, **__: pytest.fail("measured"))
    config = tables(tmp_path, "table=coco", "table.detectors=[retinanet,fcos]", small=False)
    found = plan(config, [0])
    retinanet, fcos = found.rows
    # 90,000 steps of 0.205 s on 8 GPUs, and 5,000 images at three times the training speed
    hours = 90_000 * 0.205 * 8 / 3600
    assert retinanet.hours_each == pytest.approx(hours + 5_000 / 3 * 0.205 * 8 / 16 / 3600, rel=1e-3)
    assert 0.8 < fcos.hours_each / retinanet.hours_each < 0.9
    assert {row.source for row in found.rows} == {"published, scaled"}
    assert {row.device for row in found.rows} == {"V100"}
    assert found.hours_by_device()["V100"] == pytest.approx(2 * (retinanet.hours_each + fcos.hours_each))
    text = " ".join(found.notes)
    assert "make data-coco" in text and "41 GB" in text
    main(config)
    assert "0 done" in capsys.readouterr().out


def test_a_table_on_photographs_is_planned_without_them(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = plan(tables(tmp_path, "table=ccp", small=False), [0, 1])
    (row,) = found.rows
    # two losses, two seeds, two splits and two folds
    assert (row.runs, row.done) == (16, 0) and row.hours_each > 0
    assert row.bytes_each > 502 * 100 * DETECTION_BYTES  # detections of one half
    error, unknown = [note for note in found.notes if note.startswith(("Data: ", "Without the data"))]
    assert f"{tmp_path}/data/ccp" in error and "prepare_data ccp" in error
    assert "finished runs are not counted" in unknown


def test_the_sizes_of_photographs_are_those_of_their_page():
    page = (CONF.parent / "docs" / "photographs.md").read_text()
    stated = {}
    for row in re.findall(r"^\| `(\w+)` \|(.*)\|$", page, re.M):
        images, classes = row[1].split("|")[1:3]
        numbers = [int(text.replace(",", "")) for text in re.findall(r"[\d,]+", images)]
        stated[row[0]] = (sum(numbers), int(classes))
    own = {name: size for name, size in SIZES.items() if name not in PUBLISHED}
    assert own.keys() == stated.keys() - {"coco_sample"}  # it is in no table
    for name, size in own.items():
        assert (size.train_images + size.val_images, size.classes) == stated[name], name


def test_a_terminal_shows_that_a_plan_reads_data(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(actions, "console", Console(file=screen, force_terminal=True, width=150))

    def planned(*_):
        for _ in range(100):  # another thread draws
            time.sleep(0 if "Reading the data of the runs" in screen.getvalue() else 0.1)
        assert "Reading the data of the runs" in screen.getvalue()
        raise ConfigError("seen")

    monkeypatch.setattr(actions, "plan", planned)
    with pytest.raises(ConfigError, match="seen"):
        actions.act(tables(tmp_path))


def test_steps_measured_on_a_gpu_are_scaled_before_a_published_speed_is(tmp_path):
    """The committed steps; RetinaNet's hours by hand, others in proportion to their multiply-adds."""
    committed = CONF.parent / "results" / "benchmark" / "gpu.json"
    (tmp_path / "results" / "benchmark").mkdir(parents=True)
    copy = tmp_path / "results" / "benchmark" / "gpu.json"
    copy.write_bytes(committed.read_bytes())
    rows = json.loads(copy.read_text())["rows"]
    seconds = min(
        row["ours"] for row in rows if row["what"].startswith("step, retinanet, bf16") and row["ours"]
    )
    config = tables(
        tmp_path, "table=coco", "table.detectors=[retinanet,fcos,centernet]", "measure=false", small=False
    )
    found = plan(config, [0])
    retinanet, fcos, centernet = found.rows
    images = 90_000 * 16 + 5_000 / 3
    # The time of the same layers is proportional to the number of pixels: 800 x 1,088 compared with 512 x 512.
    hours = images * seconds / 16 * (800 * 1088) / 512**2 / 3600
    assert retinanet.hours_each == pytest.approx(hours, rel=1e-3)
    assert (retinanet.source, fcos.source) == (speeds.SCALED[0],) * 2 and centernet.source == speeds.SCALED[1]
    assert {row.device for row in found.rows} == {"NVIDIA H200"}
    costs = [
        network_cost(
            compose_cell(detector=name, loss="fl", overrides=[f"experiment=coco/{name}"]), 80
        ).forward_macs
        for name in ("centernet", "retinanet")
    ]
    work = (140 * 118_287 + 5_000 / 3) * costs[0] / (images * costs[1])
    assert centernet.hours_each == pytest.approx(hours * work, rel=0.01)
    text = " ".join(found.notes)
    assert "images/s of 512 px on one NVIDIA H200, without reading images" in text and "measure=true" in text


def with_features(config):
    """The same tables, whose runs start from pre-trained features of a network that the repository has none for."""
    config.overrides = [text for text in config.overrides if not text.startswith("initial_weights")]
    config.overrides.append("detector.head_channels=64")
    return config


def test_pretraining_is_part_of_the_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(
        speeds,
        "measure_throughput",
        lambda *_, batch_size, steps: Throughput(10.0, batch_size, steps, (96, 96), "X"),
    )
    config = with_features(tables(tmp_path))
    cell, features = plan(config, [0, 1]).rows
    # 20 epochs of 1,500 images in steps of 16
    assert (features.runs, features.done) == (1, 0)
    assert features.hours_left == pytest.approx(1_875 * 16 / 10 / 3600)
    assert (cell.name, features.name) == ("centernet", FEATURES)


def test_data_sets_share_the_pretraining_of_a_detector(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        speeds,
        "measure_throughput",
        lambda config, classes, **_: (
            asked.append((config.dataset.name, classes)) or Throughput(10.0, 16, 4, (96, 96), "X")
        ),
    )
    config = with_features(tables(tmp_path, "table.datasets=[shapes_lvis,shapes_coco]"))
    *cells, features = plan(config, [0]).rows
    assert (len(cells), features.runs) == (2, 1)
    # The set of the pre-training has 12 outlines and 8 fills.
    assert asked == [("shapes_lvis", 30), ("shapes_coco", 30), ("shapes_pretraining", 96)]


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ({}, 1),
        ({"status": "failed"}, 0),
        ({"key": "shapes_pretraining-centernet-fl-s0-ffffffff"}, 0),
        ({"setting": ("trainer", "max_duration", "1steps")}, 0),
        ({"setting": ("backbone", "name", "other")}, 0),
        ({"setting": ("paths", "data", "/of/another/machine")}, 1),
    ],
)
def test_only_a_finished_pretraining_with_the_same_settings_is_done(tmp_path, changes, done):
    config = with_features(tables(tmp_path, "measure=false"))
    (cell,) = compose_rows(config).values()
    plain = OmegaConf.to_container(pretraining_config(cell), resolve=True)
    if "setting" in changes:
        group, name, value = changes.pop("setting")
        plain[group][name] = value
    folder = tmp_path / "outputs" / "shapes_pretraining-centernet-fl-s0-0a1b2c3d"
    record = Record(
        key=folder.name, status="finished", dataset="shapes_pretraining", detector="centernet", loss="fl",
        seed=0, config=plain, groups={"disc": "f"}, metrics={"AP": 0.5},
    )  # fmt: skip
    write_record(folder / "record.json", dataclasses.replace(record, **changes))
    features = plan(config, [0]).rows[-1]
    assert (features.runs, features.done) == (1, done)
    assert (features.hours_left == 0) == bool(done)


def test_a_plan_prints_its_rows_and_notes(done, tmp_path):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    console.print(plan(tables(tmp_path), [0, 1]).to_rich())
    text = console.export_text()
    assert "4 runs, 1 done, 3 to train" in text and "centernet" in text and "Free in" in text


def test_the_last_line_of_a_plan_has_the_hours_and_the_disk_of_the_runs_that_are_left():
    rows = [
        Row("fcos", 6, 1, 1.0, 5.0, 2e9, "A", ""),
        Row("retinanet", 3, 3, 9.0, 0.0, 7e9, "A", ""),
        Row("centernet", 4, 0, 30.0, 120.0, 0.5e9, "B", ""),
    ]
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    console.print(Plan("", rows, []).to_rich())
    line = console.export_text().splitlines()[-1].strip()
    assert line == "13 runs, 4 done, 9 to train: 5.0 h on one A, 120 h on one B; 12.0 GB of disk"


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_plan_in_a_narrow_terminal_shows_every_value_in_full(done, tmp_path, width):
    def words(columns: int) -> tuple[set[str], int]:
        console = Console(width=columns, record=True, file=open("/dev/null", "w"))
        console.print(found.to_rich())
        text = console.export_text()
        return set(text.split()), max(map(len, text.splitlines()))

    found = plan(tables(tmp_path), [0, 1])
    narrow, widest = words(width)
    values = {word for row in found.rows for word in (row.name, *row.device.split(), *row.source.split())}
    assert widest <= width and values <= narrow
    assert {word for word in words(300)[0] if word[0].isalnum() and len(word) < width} <= narrow


def test_an_unknown_value_of_measure_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match="auto, true, false"):
        plan(tables(tmp_path, "measure=maybe"), [0])


def test_finished_runs_of_a_row_are_counted_together():
    def speed(source: str) -> speeds.Speed:
        return speeds.Speed(10.0, "X", source)

    own = [speed("measured: 5 finished runs"), speed("measured: 1 finished run")]
    assert speeds.sources(own) == "measured: 6 finished runs"
    other = speed("measured: 5 finished runs with other losses")
    assert speeds.sources([*own, other]) == "; ".join(one.source for one in [*own, other])
    assert speeds.sources([own[1]]) == own[1].source


@pytest.mark.parametrize("detector", speeds.MACS)
def test_the_networks_that_speeds_are_scaled_from_have_the_stated_cost(detector):
    cell = compose_cell(detector=detector, loss="fl", overrides=[f"experiment=coco/{detector}"])
    assert network_cost(cell, 80).forward_macs == speeds.MACS[detector]
    assert math.prod(training_size(cell)) == speeds.PUBLISHED_PIXELS


def test_a_table_of_older_configs_cannot_be_planned():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("tables", overrides=["table=search", "action=plan"])
    with pytest.raises(ConfigError, match="commit 27bad7e, .* no longer exist: `make table-search`"):
        plan(config, [0])


def test_a_row_whose_experiment_has_another_data_set_cannot_be_planned():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("tables", overrides=["table=coco", "action=plan", "table.datasets=[voc]"])
    with pytest.raises(
        ConfigError, match="protocol of detector=cornernet dataset=coco, not of .*regime=published_voc"
    ):
        plan(config, [0])


def test_a_data_set_with_another_name_than_its_entry_is_refused_before_training():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("tables", overrides=["table=short", "action=plan", "table.datasets=[shapes]"])
    with pytest.raises(
        ConfigError, match="lists the data set shapes, .*dataset.name=shapes_lvis.*; list shapes_lvis"
    ):
        plan(config, [0])


@pytest.mark.parametrize(
    ("lists", "problem"),
    [
        ("detectors=[centernet,fcoss]", "There is no detector 'fcoss'. Did you mean detector=fcos?"),
        ("losses=[fl,cbf]", "There is no loss 'cbf'. Did you mean loss=cbfl?"),
        ("datasets=[shape]", "There is no dataset 'shape'. Did you mean dataset=shapes?"),
        ("metrics=[AP,AP_rr]", "There is no metric 'AP_rr'. Did you mean AP_r?"),
    ],
)
def test_a_misspelt_name_in_a_table_gives_one_line(tmp_path, lists, problem):
    with pytest.raises(ConfigError, match=rf"^table=shapes: {re.escape(problem)}[^\n]*$"):
        plan(tables(tmp_path, f"table.{lists}"), [0])


def test_missing_data_of_a_users_own_is_named(tmp_path):
    options = [
        "table=short",
        "action=plan",
        "table.datasets=[custom]",
        "table.overrides=[]",
        f"paths.data={tmp_path}",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("tables", overrides=options)
    with pytest.raises(DataError, match=str(tmp_path)):
        plan(config, [0])


def test_the_speed_of_a_run_does_not_depend_on_its_loss():
    def work(*overrides: str, loss: str = "fl"):
        return speeds._work(
            compose_cell(detector="fcos", loss=loss, overrides=["dataset=shapes", *overrides])
        )

    assert work() == work(loss="afl") == work("seed=3", "trainer.max_duration=3epochs")
    assert work() != work("pyramid.channels=64") and work() != work("trainer.precision=fp32")
    plain = OmegaConf.to_container(
        compose_cell(detector="fcos", loss="fl", overrides=["dataset=shapes"]), resolve=True
    )
    assert speeds._work(plain) == work()
