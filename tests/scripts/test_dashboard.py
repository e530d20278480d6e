"""Panels against the names that a run really logs; the view as wandb-workspaces itself builds and checks it."""

from __future__ import annotations

import re
import sys

import pytest

from afl.tracking import read_metrics
from afl.training import run_cell
from afl.training.compose import compose_cell
from afl.training.diagnostics import diagnostic_charts
from scripts import dashboard
from scripts.dashboard import MISSING, main, read_spec, workspace


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
    names = {name for line in read_metrics(home / "metrics.jsonl") for name in line}
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


def test_what_is_missing_is_one_line(monkeypatch, capsys):
    for arguments, message in (
        ([], "entity=ME"),
        (["entity=me", "project=afl", "dashbord=arms"], "Did you mean dashboard?"),
        (["entity=me", "project=afl", "dashboard=arm"], "there are: arms"),
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
