"""Tables from a replacement of ``wandb.Api`` equal tables from the same records on disk, byte for byte."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir

from afl.config import CONF
from afl.reporting import ServerError, server_records
from afl.tables import actions
from afl.tracking import RECORD, record_of_summary, summary_of_record, write_record
from scripts import table as table_script


class StandIn:
    """The part of ``wandb.Api`` that this project uses: all runs of a project, with name, id, config and summary."""

    def __init__(self, runs=(), error=None):
        self.asked, self._runs, self._error = [], list(runs), error

    def runs(self, path):
        self.asked.append(path)
        if self._error:
            raise self._error
        yield from self._runs


def server_run(record, number=0):
    """A run on the server, whose summary was converted to JSON and has W&B's fields."""
    summary = {
        **record.metrics,
        **summary_of_record(record),
        "_runtime": 70,
        "val/AP": {"last": 0.3, "max": 0.4},
    }
    return SimpleNamespace(
        name=record.key, id=f"id{number}", config=record.config, summary=json.loads(json.dumps(summary))
    )


def tables(tmp_path, where, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(
            "tables",
            overrides=[
                "table=voc", "table.detectors=[fcos,centernet]", "table.losses=[fl,afl]", "table.metrics=[AP,AP50]",
                f"results={tmp_path}/{where}", f"tables={tmp_path}/{where}", f"paths.data={tmp_path}/none", *overrides,
            ],
        )  # fmt: skip


@pytest.fixture
def voc_records(record):
    found = []
    for seed in (0, 1):
        for detector in ("fcos", "centernet"):
            for loss in ("fl", "afl"):
                value = 0.1 + 0.2 / 3 * seed + 0.0123456789012345678 * len(detector) * len(loss)
                metrics = {"AP": value, "AP50": None if seed else value / 3}
                found.append(
                    record(detector, loss, seed, dataset="voc", metrics=metrics, config={"seed": seed})
                )
    found[3] = replace(found[3], status="failed", metrics={}, error="ValueError: loss is nan é & 100%")
    return found


def build(config, capsys) -> dict[str, bytes]:
    with pytest.raises(SystemExit):  # because of the failed run
        table_script.main(config)
    capsys.readouterr()
    return {path.name: path.read_bytes() for path in (CONF / config.results / "voc").glob("*.*")}


def test_disk_and_server_give_the_same_bytes(voc_records, tmp_path, monkeypatch, capsys):
    for number, one in enumerate(voc_records):
        write_record(tmp_path / "disk" / "voc" / "records" / f"{number}.json", one)
    disk = build(tables(tmp_path, "disk", "publish=true"), capsys)
    others = [SimpleNamespace(name="x", id="1", config={}, summary={"AP": 0.9})]
    api = StandIn([server_run(one, n) for n, one in enumerate(reversed(voc_records))] + others)
    monkeypatch.setattr(actions, "connect", lambda: api)
    server = build(tables(tmp_path, "server", "source=wandb", "entity=me", "project=afl"), capsys)
    assert api.asked == ["me/afl"]
    assert set(disk) == {"table.md", "table.tex", "table.csv", "cells.csv"} and server == disk
    assert b"loss is nan" in disk["table.md"] and b"Not run" not in disk["table.md"]


def test_a_record_is_restored_except_for_fields_that_no_table_shows(voc_records):
    one = replace(voc_records[0], per_class={"a": 0.1}, groups={"a": "r"}, gradient_dynamics={"x": 1})
    back = record_of_summary(summary_of_record(one)[RECORD], one.config, "here")
    assert back == replace(one, per_class={}, groups={}, gradient_dynamics={})


def test_runs_without_a_complete_record_are_left_out_and_reported(voc_records, caplog):
    caplog.set_level(logging.WARNING)
    good, torn, foreign = (server_run(one) for one in voc_records[:3])
    torn.summary[RECORD] = torn.summary[RECORD][:40]
    foreign.summary[RECORD] = json.dumps({"schema": 99})
    running = SimpleNamespace(name="r", id="9", config={}, summary={})
    found = server_records(StandIn([torn, running, good, foreign]), entity=None, project="p")
    assert [one.key for one in found] == [voc_records[0].key]
    assert (
        "damaged" in caplog.text
        and "schema 99" in caplog.text
        and "1 runs of p have no record" in caplog.text
    )


def test_a_server_that_does_not_respond_gives_one_line(tmp_path, monkeypatch):
    api = StandIn(error=OSError("no route\nto host"))
    with pytest.raises(ServerError, match="me/afl cannot be read .*no route to host"):
        server_records(api, entity="me", project="afl")
    monkeypatch.setattr(actions, "connect", lambda: api)
    with pytest.raises(SystemExit, match="cannot be read"):
        table_script.main(tables(tmp_path, "server", "source=wandb"))


def test_runs_of_another_configuration_are_left_out(voc_records, tmp_path, monkeypatch, capsys):
    other = [replace(one, key=one.key[:-8] + "ffffffff") for one in voc_records]
    api = StandIn([server_run(one) for one in voc_records + other])
    monkeypatch.setattr(actions, "connect", lambda: api)
    cells = [SimpleNamespace(folder=tmp_path / one.key) for one in voc_records]
    monkeypatch.setattr(actions, "cells_of", lambda config, seeds: cells)
    config = tables(tmp_path, "server", "source=wandb")
    assert actions._on_server(config) == sorted(
        server_records(StandIn([server_run(one) for one in voc_records]), entity=None, project="afl"),
        key=lambda record: record.key,
    )
    assert "configuration differs" in capsys.readouterr().out


def test_the_real_package_has_the_used_attributes():
    wandb = pytest.importorskip("wandb")
    from wandb.apis.public import Run

    assert callable(wandb.Api.runs)
    for name in ("summary", "id", "config", "name"):
        assert (
            hasattr(Run, name) or name in Run.__init__.__code__.co_names or name in str(Run.__annotations__)
        ), name
