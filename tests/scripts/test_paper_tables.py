"""The paper's tables without their data: every row and column composes as its files say, and headers agree with the counts."""

from __future__ import annotations

import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from afl.config import CONF, ConfigError
from afl.tables import sweep as sweeping
from afl.tables.cells import compose_cells, preset
from afl.tables.pinned import pinned, require_trainable
from afl.training.compose import compose_cell
from afl.training.cost import network_cost
from afl.training.duration import Duration
from datasets.releases import PUBLISHED, SIZES
from scripts import table as table_script
from scripts.entry import unknown_choice

EXPERIMENTS = sorted(
    path.relative_to(CONF / "experiment").with_suffix("").as_posix()
    for path in (CONF / "experiment").glob("*/*.yaml")
)
# A table whose losses no longer exist does not compose.
TABLES = sorted(
    path.stem for path in (CONF / "table").glob("*.yaml") if OmegaConf.load(path).get("trainable", True)
)
PAPER = ["coco", "lvis", "lvis_ablation", "lvis_sampling", "voc"]
HEADER = ("Command", "Protocol", "Expected", "GPU hours")


def tables(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("tables", overrides=[f"table={name}", *overrides])


@cache
def experiment(name: str) -> DictConfig:
    return compose_cell(detector=name.partition("/")[2], loss="fl", overrides=[f"experiment={name}"])


def images(config: DictConfig, dataset: str) -> int:
    steps = Duration.parse(config.trainer.max_duration).in_steps(
        images_per_epoch=SIZES[dataset].train_images, batch_size=config.trainer.batch_size
    )
    return steps * config.trainer.batch_size


@pytest.mark.parametrize("path", sorted((CONF / "table").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_table_names_the_commits_of_its_committed_records(path):
    kept = (CONF.parent / "results" / path.stem / "records").glob("*.json")
    seen = [json.loads(record.read_text())["git"]["sha"] for record in kept]
    commits = {sha[:7] for sha in seen if sha}  # a machine without git records no commit
    named = list(OmegaConf.load(path).get("trained_at", []))
    assert sorted(commits) == named if commits or not seen else len(named) == 1


@pytest.mark.parametrize("commit", ["3221426", "12e4567"])
def test_a_commit_that_yaml_reads_as_a_number_is_refused_with_its_table(commit):
    table = OmegaConf.create(f"{{name: mine, trainable: false, trained_at: [3e1815c, {commit}]}}")
    for question in (pinned, require_trainable):
        with pytest.raises(
            ConfigError, match="trained_at of table=mine has the number .* in quotation marks"
        ):
            question(table)


def test_every_detector_and_data_set_has_one_experiment():
    detectors = {path.stem for path in (CONF / "detector").glob("*.yaml")}
    assert set(EXPERIMENTS) == {f"{dataset}/{detector}" for dataset in PUBLISHED for detector in detectors}
    assert set(PAPER) <= set(TABLES)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_has_its_detector_its_data_resnet_50_and_the_stated_hours(name):
    dataset, _, detector = name.partition("/")
    config = experiment(name)
    assert (config.cell.dataset, config.cell.detector) == (dataset, detector)
    assert config.backbone.name == "resnet50" and config.backbone.pretrained
    assert config.trainer.batch_size % 8 == 0  # its command's eight processes
    text = (CONF / "experiment" / f"{name}.yaml").read_text()
    header = text.partition("defaults:")[0]
    assert [found for found in HEADER if re.search(rf"^# {found} ", header, re.M)] == list(HEADER)
    assert f"experiment={name} " in header
    # 41 V100 hours are 90,000 steps of 0.205 s on 8 GPUs; the rest follows from multiply-adds and images.
    reference = experiment("coco/retinanet")
    work = images(config, dataset) * network_cost(config, SIZES[dataset].classes).forward_macs
    hours = (
        90_000
        * 0.205
        * 8
        / 3600
        * work
        / (images(reference, "coco") * network_cost(reference, 80).forward_macs)
    )
    said = float(re.search(r"^# GPU hours ([\d.]+) V100 hours", header, re.M)[1])
    assert said == pytest.approx(hours, rel=0.03)


@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_a_table_composes(name):
    config = tables(name)
    config.table.losses = config.table.losses[:1]
    for (loss, dataset, detector), cell in compose_cells(config).items():
        assert (cell.cell.loss, cell.cell.dataset, cell.cell.detector) == (loss, dataset, detector)
        assert OmegaConf.to_container(cell, resolve=True)["seed"] == 0


def test_every_column_only_changes_the_loss():
    def rest(loss: str) -> dict:
        config = OmegaConf.to_container(compose_cell(detector="fcos", loss=loss, overrides=["dataset=coco"]))
        del config["loss"], config["cell"]["loss"]
        return config

    expected = rest("fl")
    losses = {loss for name in TABLES for loss in tables(name).table.losses}
    for loss in losses:
        assert rest(loss) == expected, loss


@pytest.mark.parametrize("name", PAPER)
def test_the_header_of_a_table_has_its_commands_and_the_sum_of_the_hours(name):
    header = (CONF / "table" / f"{name}.yaml").read_text().partition("name:")[0]
    target = name.replace("_", "-")
    for word in (f"plan-table-{target}", f"reproduce-table-{target}", "Protocol", "Expected", "GPU hours"):
        assert word in header
    spec = tables(name).table
    rows = [
        (CONF / "experiment" / spec.experiments / f"{detector}.yaml").read_text()
        for detector in spec.detectors
    ]
    each = sum(float(re.search(r"^# GPU hours ([\d.]+) V100 hours", text, re.M)[1]) for text in rows)
    said = [
        float(found.replace(",", "")) for found in re.findall(r"([\d,]+)(?= V100 hours| for all)", header)
    ]
    assert said[0] == pytest.approx(each, abs=1) and said[-1] == pytest.approx(each * len(spec.losses), abs=3)


@pytest.mark.parametrize("name", ["coco", "lvis", "voc"])
def test_missing_data_stops_a_table_before_training(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping, "sweep", lambda *_: pytest.fail("trained"))
    config = tables(
        name, "action=run", "table.detectors=[fcos]", "table.losses=[fl]", f"paths.data={tmp_path}/data"
    )
    with pytest.raises(SystemExit) as stop:
        table_script.main(config)
    assert f"make data-{name}" in stop.value.code and "\n" not in stop.value.code


def test_a_sweep_of_presets_has_the_runs_of_the_table(monkeypatch, tmp_path):
    commands = []
    monkeypatch.setattr(sweeping.subprocess, "Popen", lambda command, **_: commands.append(command))
    config = tables("voc", "jobs=3", f"paths.output={tmp_path}")
    sweeping.sweep(config, [0, 1], tmp_path / "sweep.log")
    (command,) = commands
    assert "hydra.launcher.n_jobs=3" in command and "seed=0,1" in command
    assert "experiment=" + ",".join(f"voc/{detector}" for detector in config.table.detectors) in command
    assert not [word for word in command if word.startswith("detector=")]
    # The sweep composes the config that the table expects.
    (cell,) = compose_cells(tables("voc", "table.detectors=[extremenet]", "table.losses=[fl]")).values()
    alone = experiment("voc/extremenet")
    assert OmegaConf.to_container(alone, resolve=True) == OmegaConf.to_container(cell, resolve=True)
    assert preset(config, "fcos") == ["experiment=voc/fcos"]


def test_presets_in_folders_are_found_by_name():
    assert unknown_choice(["experiment=coco/fcos"]) is None
    assert "experiment=coco/fcos?" in unknown_choice(["experiment=coco/fcoss"])


def test_a_limit_on_threads_does_not_reduce_the_number_of_processes_of_make():
    said = {
        limit: subprocess.run(
            ["make", "-n", "test"],
            cwd=Path(CONF).parent,
            env={**os.environ, "OMP_NUM_THREADS": limit},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for limit in ("1", "64")
    }
    assert "pytest -n" in said["1"] and said["1"] == said["64"]


def test_make_has_the_targets_that_the_tables_name():
    text = (Path(CONF).parent / "Makefile").read_text()
    for target in ("reproduce-table-%", "plan-table-%", "table-%"):
        assert f"\n{target}:" in text
