"""Panels compared with the names that a run logs; the view as wandb-workspaces builds and checks it."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys

import pytest

from afl.tracking import overview, read_metrics
from afl.training import run_cell
from afl.training.compose import compose_cell
from afl.training.diagnostics import diagnostic_charts
from scripts import dashboard
from scripts.dashboard import MISSING, main, read_spec, workspace
from scripts.entry import CONF
from tests.tracking.wandb_server import WandbServer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Names of curves and charts of a run with AFL, and its final figures."""
    folder = tmp_path_factory.mktemp("dashboard")
    config = compose_cell(
        detector="fcos",
        loss="afl",
        overrides=[
            "dataset=shapes_lvis", "dataset.folder.num_train=150", "dataset.folder.num_val=10", "initial_weights=null",
            "logger=none", "trainer.batch_size=50", "trainer.max_duration=3steps", "trainer.log_every=1steps",
            "trainer.progress=none", "trainer.device=cpu", f"paths.output={folder}/outputs", f"paths.cache={folder}/cache",
        ],
    )  # fmt: skip
    record = run_cell(config)
    home = folder / "outputs" / record.key
    lines = read_metrics(home / "metrics.jsonl")
    names = {name for line in lines for name in [*line, *overview(line)]}
    return record, names, set(diagnostic_charts(home / "diagnostics.json"))


def test_no_panel_is_empty(run):
    record, names, charts = run
    spec = read_spec("arms")
    shown = 0
    for section in spec["sections"]:
        for metrics in section.get("bars", {}).values():
            assert set(metrics) <= set(record.metrics)
        assert set(section.get("lines", {}).values()) <= names
        for regex in section.get("regex", {}).values():
            assert any(re.fullmatch(regex, name) for name in names), regex
        assert set(section.get("charts", {}).values()) <= charts
        shown += sum(len(value) for value in section.values() if isinstance(value, dict))
    assert shown > 15
    for key in spec["group_by"]:
        part, name = key.split(".")
        assert record.config[part][name]


@pytest.mark.filterwarnings("ignore")  # of the package about itself
def test_the_view_passes_the_package_that_saves_it():
    pytest.importorskip("wandb_workspaces")
    view = workspace(read_spec("arms"), entity="me", project="afl")
    text = view._to_model().model_dump_json()
    for word in (
        "val/AP_r",
        "gate_q50",
        "val_charts/confusion_groups_table",
        "cell.value.loss",
        "AP by frequency group",
    ):
        assert word in text, word


@pytest.mark.filterwarnings("ignore")  # of the package about itself
def test_the_report_has_every_panel_of_the_view_and_the_tables(monkeypatch):
    interface = pytest.importorskip("wandb_workspaces.reports.v2.interface")
    # The package asks the server for the number of the project.
    monkeypatch.setattr(interface, "_get_api", lambda: None)
    monkeypatch.setattr(interface, "execute_graphql", lambda *_: {"project": {"internalId": "7"}})
    text = (
        dashboard.report(read_spec("arms"), ["shapes"], entity="me", project="afl")
        ._to_model()
        .model_dump_json()
    )
    for word in (
        "0_overview/AP_r",
        "0_overview/push_f",
        "shapes/table",
        "shapes/cells",
        "reconstruction",
        "gate_q50",
    ):
        assert word in text, word


def test_the_tables_of_results_become_tables_of_an_offline_run(tmp_path, monkeypatch, capsys):
    """The tables in W&B's files equal the CSV files."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    main(["project=afl", "tables=[shapes]", f"results={CONF.parent}/results"])
    assert "wandb sync uploads it" in capsys.readouterr().out
    written = {
        path.name.split("_")[0]: path
        for path in tmp_path.glob("outputs/wandb/offline-run-*/files/media/table/shapes/*.json")
    }
    for name in ("table", "cells"):
        with open(CONF.parent / "results" / "shapes" / f"{name}.csv", newline="") as file:
            header, *rows = csv.reader(file)
        content = json.loads(written[name].read_text())
        assert content["columns"] == header and len(content["data"]) == len(rows)
        for row, expected in zip(content["data"], rows, strict=True):
            for value, cell in zip(row, expected, strict=True):
                assert (
                    value == pytest.approx(float(cell)) if isinstance(value, float) else (value or "") == cell
                )


def test_missing_requirements_give_one_line(monkeypatch, capsys):
    for arguments, message in (
        ([], "which project? python -m scripts.dashboard entity=ME"),
        (["project=afl"], "which entity? python -m scripts.dashboard entity=ME"),
        (["entity=me", "project=afl", "dashbord=arms"], "Did you mean dashboard?"),
        (["entity=me", "project=afl", "dashboard=arm"], "there are: arms"),
        (["project=afl", "report=true", "tables=[shapes]"], "entity=ME"),
        (["project=afl", "tables=[shpes]", f"results={CONF.parent}/results"], "there are tables: ablation"),
    ):
        with pytest.raises((SystemExit, ValueError), match=re.escape(message)):
            main(arguments)
    with monkeypatch.context() as patch:
        for name in ("wandb_workspaces", "wandb_workspaces.reports.v2", "wandb_workspaces.workspaces"):
            patch.setitem(sys.modules, name, None)
        with pytest.raises(SystemExit, match=re.escape(MISSING)):
            main(["entity=me", "project=afl"])

    class View:
        url = "https://wandb.ai/me/afl"

        def save(self):
            if self.url is None:
                raise ConnectionError("not\nlogged in")

    monkeypatch.setattr(dashboard, "workspace", lambda *_, **__: View())
    main(["entity=me", "project=afl"])
    assert capsys.readouterr().out == "https://wandb.ai/me/afl\n"
    monkeypatch.setattr(View, "url", None)
    with pytest.raises(SystemExit, match="not logged in.*wandb login"):
        main(["entity=me", "project=afl"])


SAVING = """
import sys
from scripts.dashboard import main
main(["entity=me", "project=afl"])
main(["entity=me", "project=afl", "report=true", "tables=[shapes]", f"results={sys.argv[1]}/results"])
"""


def test_the_command_saves_the_view_and_the_draft_with_the_overview_first(tmp_path):
    """In the view and the draft that a server receives, the panels of the overview come first, in their order."""
    pytest.importorskip("wandb_workspaces")
    root = str(CONF.parent)
    with WandbServer() as server:
        environment = {
            **os.environ,
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": "local" + "0" * 40,
            "WANDB_MODE": "offline",
            "HOME": str(tmp_path),
            "PYTHONPATH": root,
        }
        command = [sys.executable, "-c", SAVING, root]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(f"{server.url}/me/afl") == 2, done.stderr
    view, draft = server.views
    assert (view["type"], draft["type"]) == ("project-view", "runs/draft")
    for saved in (view, draft):
        assert (saved["entityName"], saved["projectName"]) == ("me", "afl")
        spec = saved["spec"]
        places = [spec.index(f"0_overview/{name}") for name in ("AP_r", "AP_f", "kappa", "push_r", "push_f")]
        assert places == sorted(places) and places[-1] < spec.index("val/AP_c")
        assert "global_step" not in spec and "reconstruction" in spec
    assert "cell.value.detector" in view["spec"] and "cell.value.loss" in view["spec"]
    assert "shapes/table" in draft["spec"] and "shapes/cells" in draft["spec"]
