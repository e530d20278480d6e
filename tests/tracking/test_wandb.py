"""A failure of W&B in any call, including the real package offline, does not affect a run."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from afl.tracking.tracker import Chart, NullTracker, Picture, Tracker
from afl.tracking.wandb import BEST, WandbTracker, logged_in
from afl.tracking.wandb_values import CHARTS


class StandIn:
    """Replaces ``wandb`` and its run, records the calls, and fails on request."""

    def __init__(self, failing=()):
        self.failing = failing
        self.calls = []
        self.run = SimpleNamespace(summary=SimpleNamespace())
        for name in ("init", "Image", "Table", "Histogram", "Settings", "setup", "teardown", "plot_table"):
            setattr(self, name, self.call(name))
        for name in ("log", "define_metric", "finish"):
            setattr(self.run, name, self.call(name))
        self.run.summary.update = self.call("update")

    def call(self, name):
        def function(*positional, **named):
            if name in self.failing:
                raise OSError(f"no {name}\ntoday")
            self.calls.append((name, positional, named))
            return self.run if name == "init" else (name, positional, named)

        return function

    def named(self, name):
        return [(positional, named) for called, positional, named in self.calls if called == name]


@pytest.fixture
def stand_in(monkeypatch):
    def install(failing=()):
        fake = StandIn(failing)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    return install


def start(tmp_path, **changes):
    arguments = {
        "project": "p",
        "directory": tmp_path / "run",
        "name": "n",
        "run_id": "0a1b2c3d",
        "mode": "offline",
    }
    return WandbTracker(**(arguments | changes))


def picture():
    return Picture(
        name="image 7",
        pixels=np.zeros((8, 8, 3), np.uint8),
        boxes=np.array([[0, 1, 4, 5]]),
        labels=np.array([1]),
        found_boxes=torch.tensor([[0, 0, 4, 5]]),
        found_scores=torch.tensor([0.5]),
        found_labels=torch.tensor([0]),
    )


def use(tracker):
    tracker.log(1, {"loss": torch.tensor(2.0), "gate": torch.arange(4.0), "note": "x"})
    tracker.log_pictures(1, [picture()])
    tracker.log_table(1, "classes", ["class", "AP"], [["a", 0.5], ["b", None]])
    tracker.log_charts(1, {"pr": CHART})
    tracker.summary({"AP": 0.5})
    tracker.finish()


CHART = Chart(
    "lines", "Precision", ("group", "recall", "precision"), [("rare", 0.0, 1.0), ("rare", 1.0, 0.5)]
)
CALLS = (
    "Settings",
    "setup",
    "init",
    "define_metric",
    "Histogram",
    "log",
    "Image",
    "Table",
    "plot_table",
    "update",
    "finish",
)


@pytest.mark.parametrize("failing", [(name,) for name in CALLS] + [(*CALLS, "teardown")])
def test_a_failure_in_any_call_gives_one_line_and_training_continues(tmp_path, stand_in, caplog, failing):
    fake = stand_in(failing)
    caplog.set_level(logging.WARNING)
    use(start(tmp_path))
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "W&B could not" in message and "today" in message and "\n" not in message
    assert ("teardown", (), {}) in fake.calls or "teardown" in failing


@pytest.mark.parametrize("hanging", ["log", "update", "finish"])
def test_a_call_that_does_not_return_gives_one_line_and_training_continues(
    tmp_path, stand_in, caplog, monkeypatch, hanging
):
    fake = stand_in()
    monkeypatch.setattr("afl.tracking.wandb_service.PATIENCE", 0.2)
    holder = fake.run.summary if hanging == "update" else fake.run
    never = threading.Event()
    setattr(holder, hanging, lambda *_, **__: never.wait())
    caplog.set_level(logging.WARNING)
    use(start(tmp_path))
    assert len(caplog.records) == 1 and "no answer in 0.2 s" in caplog.records[0].getMessage()
    assert fake.named("teardown")
    never.set()


def test_a_failed_import_of_wandb_gives_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    use(start(tmp_path))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_directory_that_cannot_be_created_gives_one_line(tmp_path, stand_in, caplog):
    stand_in()
    (tmp_path / "file").write_text("")
    use(start(tmp_path, directory=tmp_path / "file" / "run"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_values_pictures_and_tables_are_logged(tmp_path, stand_in):
    fake = stand_in()
    use(start(tmp_path, class_names=["cat", "dog"]))
    (values,), _ = fake.named("log")[0]
    assert values["loss"] == 2.0 and values["note"] == "x"
    assert [named for _, named in fake.named("log")] == [{"step": 1}] * 4
    assert values["gate"][0] == "Histogram" and values["gate"][1][0].tolist() == [0, 1, 2, 3]
    boxes = fake.named("Image")[0][1]["boxes"]
    assert boxes["ground_truth"]["box_data"] == [
        {
            "position": {"minX": 0, "minY": 1, "maxX": 4, "maxY": 5},
            "domain": "pixel",
            "class_id": 1,
            "box_caption": "dog",
        }
    ]
    assert boxes["predictions"]["box_data"][0]["box_caption"] == "cat 0.50"
    assert boxes["predictions"]["box_data"][0]["scores"] == {"score": 0.5}
    assert fake.named("Table")[0][1] == {"columns": ["class", "AP"], "data": [["a", 0.5], ["b", None]]}
    chart = fake.named("plot_table")[0][1]
    assert (chart["vega_spec_name"], chart["fields"]) == (
        CHARTS["lines"][0],
        {"class": "group", "x": "recall", "y": "precision"},
    )
    assert chart["data_table"][2] == {
        "columns": ["group", "recall", "precision"],
        "data": [["rare", 0.0, 1.0], ["rare", 1.0, 0.5]],
    }
    assert fake.named("update") == [(({"AP": 0.5},), {})]
    assert fake.named("finish") == [((), {"exit_code": 0})]


def test_summaries_keep_the_best_and_the_last_value(tmp_path, stand_in):
    fake = stand_in()
    start(tmp_path)
    defined = {positional[0]: named for positional, named in fake.named("define_metric")}
    assert defined["val/AP_r"] == {"summary": "last,max"} and defined["loss/total"] == {"summary": "last,min"}
    assert set(defined) == {*BEST["max"], *BEST["min"]}


def test_histograms_leave_out_values_that_are_not_finite(tmp_path, stand_in):
    fake = stand_in()
    tracker = start(tmp_path)
    tracker.log(1, {"a": np.array([1.0, np.nan, np.inf]), "b": np.array([np.nan, np.nan]), "c": np.empty(0)})
    (values,), _ = fake.named("log")[0]
    assert set(values) == {"a"}
    assert values["a"][1][0].tolist() == [1.0]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_all_attempts_of_a_run_have_its_id(tmp_path, stand_in, mode):
    fake = stand_in()
    start(tmp_path, mode=mode, group="cell")
    last = fake.named("init")[-1][1]
    assert (last["id"], last["resume"], last["group"]) == ("0a1b2c3d", "allow", "cell")


def test_auto_is_only_online_with_a_login(tmp_path, stand_in, monkeypatch):
    fake = stand_in()

    def mode():
        start(tmp_path, mode="auto")
        return fake.named("init")[-1][1]["mode"]

    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    entries = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(entries))
    assert (logged_in(), mode()) == (False, "offline")
    entries.write_text("machine example.org login user password none\n")
    entries.chmod(0o600)
    assert mode() == "offline"
    entries.write_text("machine api.wandb.ai login user password none\n")
    assert (logged_in(), mode()) == (True, "online")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert mode() == "offline"
    monkeypatch.delenv("WANDB_MODE")
    entries.unlink()
    monkeypatch.setenv("WANDB_API_KEY", "none")
    assert mode() == "online"


def test_an_unknown_mode_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="auto, online, offline"):
        start(tmp_path, mode="of")


@pytest.mark.parametrize("kind", [NullTracker, WandbTracker])
def test_every_tracker_has_the_same_methods(kind):
    for name, method in vars(Tracker).items():
        if not name.startswith("_"):
            assert inspect.signature(getattr(kind, name)) == inspect.signature(method), name
    use(NullTracker())


PROGRAM = """
import os, signal, sys, time
import numpy as np
from afl.tracking import Picture, WandbTracker, wandb_service

def start():
    return WandbTracker(project="p", directory=sys.argv[1], name="n", run_id="0a1b2c3d", mode="offline",
                        class_names=["cat"], config={"loss": {"name": "fl"}})

tracker = start()
box = np.array([[0, 1, 4, 5.0]])
tracker.log(1, {"loss": 0.5, "gate": np.arange(9.0)})
tracker.log_pictures(1, [Picture("one", np.zeros((8, 8, 3), np.uint8), box, [0], box, [0.5], [0])])
tracker.log_table(1, "classes", ["class", "AP"], [["cat", 0.5]])
tracker.summary({"AP": 0.5})
assert tracker._run is not None
tracker.finish()

tracker = start()
for process in filter(str.isdigit, os.listdir("/proc")):
    try:
        command = open(f"/proc/{process}/cmdline").read().split(chr(0))
    except OSError:
        continue
    if "wandb-core" in command[0] and str(os.getpid()) in command:
        os.kill(int(process), getattr(signal, sys.argv[2]))
wandb_service.PATIENCE = 3.0
deadline = time.monotonic() + 60
while tracker._run is not None and time.monotonic() < deadline:
    tracker.log(2, {"loss": 0.4, "gate": np.arange(4096.0)})
    time.sleep(0.002)
assert tracker._run is None
tracker.finish()
print("alive")
"""


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds W&B's process through /proc")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_the_real_package_offline_prints_nothing_and_may_die_or_hang(tmp_path, how):
    pytest.importorskip("wandb")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
    # one line about the death
    assert done.stderr.startswith("W&B could not log") and done.stderr.count("\n") == 1, done.stderr
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 2
