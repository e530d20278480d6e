"""Uploads of offline runs by `wandb sync` to a server that stores lines at their offsets, like W&B's server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from afl.tracking import WandbTracker
from tests.tracking.wandb_server import WandbServer

pytest.importorskip("wandb")
STEPS = ((10, 20), (30, 40))


def sync(server: WandbServer, folder: Path) -> None:
    """Upload all offline runs in ``folder`` with the command of a user."""
    environment = {
        **os.environ,
        "WANDB_BASE_URL": server.url,
        "WANDB_API_KEY": "local" + "0" * 40,
        "HOME": str(folder),
    }
    command = [sys.executable, "-m", "wandb", "sync", *map(str, sorted(folder.glob("wandb/offline-run-*")))]
    done = subprocess.run(
        command,
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )
    assert done.returncode == 0 and "ERROR" not in done.stderr, done.stderr


@pytest.fixture(scope="module")
def synced(tmp_path_factory):
    """The server after the upload of two offline attempts of one run; the second attempt continues the first."""
    folder = tmp_path_factory.mktemp("sync")
    for steps in STEPS:
        tracker = WandbTracker(
            project="p", directory=folder, name="shapes-fcos-afl-s0", run_id="0a1b2c3d", mode="offline",
            group="shapes-fcos-afl", tags=["afl"], config={"loss": {"name": "afl"}},
        )  # fmt: skip
        for step in steps:
            tracker.log(step, {"0_overview/AP_r": step / 100, "loss/total": 1 / step})
        tracker.log_table(steps[-1], "val/per_class", ["class", "AP"], [["ring", steps[-1] / 100]])
        if steps == STEPS[-1]:
            tracker.summary({"AP_r": 0.4})
        tracker.finish()
    with WandbServer() as server:
        sync(server, folder)
        yield server


def test_the_attempts_of_a_run_become_one_run_with_all_steps_in_order(synced):
    assert list(synced.runs) == ["0a1b2c3d"]
    history = synced.history("0a1b2c3d")
    assert [line["_step"] for line in history] == [10, 20, 30, 40]
    assert [line["0_overview/AP_r"] for line in history] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    # Each attempt asks for the offset of its lines; otherwise the lines of the second attempt would overwrite the first.
    assert sum(name == "UpsertBucket" and "jobType" in sent for name, sent in synced.operations) >= 2


def test_name_group_tags_config_summary_and_table_are_uploaded(synced):
    run = synced.runs["0a1b2c3d"]
    assert (run["displayName"], run["groupName"], run["jobType"]) == (
        "shapes-fcos-afl-s0",
        "shapes-fcos-afl",
        "train",
    )
    assert run["tags"] == ["afl"] and json.loads(run["config"])["loss"]["value"] == {"name": "afl"}
    summary = json.loads(synced.uploaded["wandb-summary.json"])
    assert summary["AP_r"] == 0.4 and summary["0_overview/AP_r"] == 0.4
    tables = {name: json.loads(body) for name, body in synced.uploaded.items() if name.endswith("table.json")}
    assert sorted(table["data"] for table in tables.values()) == [[["ring", 0.2]], [["ring", 0.4]]]


def test_the_server_answers_all_requests_except_telemetry(synced):
    assert set(synced.unknown) <= {"/sdk/otel/v1/metrics"}
