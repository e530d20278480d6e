"""A remedy added with the lines of docs/losses.md is in the help, in a table, and in the tables and figures of the page, without other
changes. A detector added with the lines of examples/new_detector.py trains and is evaluated."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("afl", "conf", "datasets", "detectors", "scripts")
DETECTORS = "centernet"
SMALL = (
    "dataset.folder.num_train=24", "dataset.folder.num_val=10", "trainer.max_duration=2steps", "initial_weights=null",
    "trainer.batch_size=4", "trainer.pictures=0", "logger=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the sources with the two files that the section asks the reader to write."""
    folder = tmp_path_factory.mktemp("clone")
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part)
    section = (ROOT / "docs/losses.md").read_text(encoding="utf-8").partition("### A remedy of your own")[2]
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL))
    (folder / "afl/losses/mine.py").write_text(blocks["python"])
    (folder / "conf/loss/mine.yaml").write_text(blocks["yaml"])
    run(folder, "scripts.table", "table=shapes", "action=run", "table.losses=[fl,mine]", f"table.detectors=[{DETECTORS}]",
        'overrides=[' + ','.join(f'"{one}"' for one in SMALL) + ']', f"paths.cache={folder}/cache")  # fmt: skip
    return folder


def run(folder: Path, module: str, *arguments: str) -> str:
    return started(folder, "-m", module, *arguments)


def started(folder: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_example_of_a_detector_trains_on_the_command_line(tmp_path):
    for part in (*PARTS, "examples", "zoo/images/shapes_lvis"):
        shutil.copytree(ROOT / part, tmp_path / part)
    example = (ROOT / "examples/new_detector.py").read_text(encoding="utf-8")
    (config,) = re.findall(r"\n\n((?:    .*\n)+)\n    python -m scripts.train (.*)\n", example)
    (tmp_path / "detectors/mine.py").write_text(example)
    with open(tmp_path / "detectors/__init__.py", "a", encoding="utf-8") as file:
        file.write("from detectors.mine import CentreCell\n")
    (tmp_path / "conf/detector/mine.yaml").write_text(textwrap.dedent(config[0]))
    short = ("trainer.fixed_detections=1000", f"paths.cache={tmp_path}/cache", *SMALL)
    run(tmp_path, "scripts.train", *config[1].split(), *short)
    (record,) = tmp_path.glob("outputs/shapes_lvis-mine-afl-s0-*/record.json")
    metrics = json.loads(record.read_text())["metrics"]
    assert 0 <= metrics["AP"] <= 1 and "AP_fixed" in metrics


def test_help_lists_it(clone):
    groups = run(clone, "scripts.train", "--help").partition("Groups:")[2]
    assert re.search(r"\| mine\b", re.sub(r"\s+", " ", groups))


def test_the_table_has_its_column_and_its_runs(clone):
    (table,) = (clone / "outputs/tables").rglob("table.md")
    assert "mine" in table.read_text()
    assert len(list(clone.glob("outputs/shapes_lvis-*-mine-s0-*/record.json"))) == len(DETECTORS.split(","))


def test_the_page_of_all_runs_shows_it_in_its_tables_and_figures(clone):
    run(clone, "scripts.report", "html", "images=1")
    page = (clone / "outputs/report.html").read_text()
    assert "<th>mine</th>" in page
    assert any(">mine<" in chart for chart in re.findall(r"<svg.*?</svg>", page, re.DOTALL))
