"""The benchmark's own measuring against known work: counted bytes, counted calls, a table and JSON that say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.benchmarks.decode import differing, enumerate_quadruples, scene
from scripts.benchmarks.evaluation import in_a_process
from scripts.benchmarks.harness import Row, bytes_saved, peak_bytes, take_turns
from scripts.benchmarks.step_profile import PARTS, VARIANTS, page_of

ROOT = Path(__file__).resolve().parents[2]


def test_sides_take_turns_and_the_first_round_does_not_count():
    calls = []
    seconds = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4 and set(seconds) == {"a", "b"}


def test_saved_bytes_count_each_memory_once():
    x = torch.ones(1000, requires_grad=True)
    assert bytes_saved(lambda: x * x) == 4000
    assert bytes_saved(lambda: torch.sigmoid(x) * x) == 8000
    assert bytes_saved(lambda: x + 1) == 0


def test_peak_is_what_was_alive_at_once():
    def work():
        first = torch.empty(1 << 20)
        second = torch.empty(1 << 20)
        del first
        third = torch.empty(1 << 20)
        return second, third

    assert peak_bytes(work) == pytest.approx(2 * 4 * (1 << 20), rel=0.01)


@pytest.mark.parametrize(
    ("ratio", "at_most", "verdict"),
    [(5.0, False, "met"), (3.9, False, "missed"), (4.0, True, "met"), (4.1, True, "missed")],
)
def test_verdicts(ratio, at_most, verdict):
    assert Row("x", ratio=ratio, budget=4.0, at_most=at_most).verdict == verdict
    assert Row("x", ratio=ratio).verdict == "" == Row("x", budget=4.0).verdict


def test_a_process_tells_figures_and_its_own_growth():
    def work(size, _):
        held = bytearray(size)
        return {"AP": float(len(held)), "AP50": 0.5, "AP75": 0.0}

    figures, seconds, grown = in_a_process(work, (64 << 20, None))
    assert figures["AP"] == 64 << 20 and seconds > 0
    assert 60 << 20 < grown < 90 << 20
    with pytest.raises(RuntimeError, match="without a result"):
        in_a_process(lambda *_: sys.exit(1), (0, None))


def test_enumeration_knows_a_box_that_is_missing():
    scores, labels, cells, center = scene(6, 1)
    best, quadruples = enumerate_quadruples(scores[0], labels[0], cells[0], center[0])
    assert len(best) >= 6 and (best.diff() <= 0).all()
    from detectors.extreme_grouping import group_extremes

    found = group_extremes(scores, labels, cells, center, threshold=0.1, limit=1000)
    assert differing(found, best, quadruples) == 0
    assert differing(found, best[1:], quadruples[1:]) == 1


def test_quick_run_of_all_subjects_prints_and_writes_every_row(tmp_path):
    command = [sys.executable, "-m", "scripts.benchmark", "quick=true", f"results={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = {
        path.stem: json.loads(path.read_text()) for path in (tmp_path / "benchmark" / "quick").glob("*.json")
    }
    assert set(files) == {"loss", "step", "eval", "input", "decode"}
    for content in files.values():
        assert content["quick"] and content["machine"]["torch"] == torch.__version__
        for row in content["rows"]:
            measured = row["ours"] is not None
            assert measured or row["note"] == "no GPU"
            if measured and row["unit"] == "s":
                assert row["ours"] > 0 and row["theirs"] > 0
    by_name = {row["what"]: row for row in files["eval"]["rows"]}
    apart = [row["ratio"] for name, row in by_name.items() if "difference" in name]
    assert len(apart) == 2 and max(apart) <= 1e-6
    boxes = [row for row in files["decode"]["rows"] if "differ" in row["what"]]
    assert boxes and all(row["ratio"] == 0 and row["ours"] > 0 for row in boxes)
    torch.cuda.is_available() or done.stdout.index("no GPU")


def test_a_typing_error_is_answered_in_one_line():
    for wrong in ("losses", "fast=true"):
        done = subprocess.run(
            [sys.executable, "-m", "scripts.benchmark", wrong], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode and "does not know" in done.stderr and "Traceback" not in done.stderr


def test_the_page_says_what_the_figures_say():
    parts = dict(zip(PARTS, (10.0, 1.0, 40.0, 9.0, 35.0, 1.0, 4.0), strict=True))
    slower = {name: 2 * value for name, value in parts.items()}
    figures = {
        "machine": {"cpu": "a processor", "load": 0.1, "torch": "2", "gpu": "no GPU"},
        "steps": 5,
        "rounds": 1,
        "before": {"fcos": slower},
        "after": {"fcos": {name: parts if name == "shipped" else slower for name in VARIANTS}},
    }
    page = page_of(figures)
    assert "| fcos | 10.0 | 1.0 | 40.0 | 9.0 | 35.0 | 1.0 | 4.0 | 100.0 | 200.0 | 2.00x |" in page
    assert "| fcos | 75 % | 9 % | 10 % | 6 % |" in page
    assert "forward (fcos)" in page and "| fcos | 2.00x | 2.00x | 2.00x | 2.00x |" in page
    assert "a processor" in page and "unmeasured" in page
