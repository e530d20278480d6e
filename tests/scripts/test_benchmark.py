"""The measurements of the benchmark compared with known work: bytes, calls, and a table that equals its JSON file."""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import re
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from afl.benchmarks import evaluation, gpu, gpu_checks, project, remedies, training_step
from afl.benchmarks.decode import differing, enumerate_quadruples, scene
from afl.benchmarks.fresh_process import in_a_process
from afl.benchmarks.fresh_process import measured as measured_here
from afl.benchmarks.harness import Row, bytes_saved, machine, peak_bytes, quantity, take_turns
from afl.benchmarks.loss import growth
from afl.benchmarks.page import page_of
from afl.config import CONF
from detectors.extreme_grouping import group_extremes
from scripts.benchmark import main


def test_each_round_runs_both_sides_in_shuffled_order():
    calls = []
    seconds = take_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 30)
    rounds = [tuple(calls[i : i + 2]) for i in range(0, 62, 2)]
    assert len(calls) == 62 and set(rounds) == {("a", "b"), ("b", "a")} and set(seconds) == {"a", "b"}
    # Half of 31 shuffled rounds begin with each side, within four standard deviations.
    assert 5 <= rounds.count(("a", "b")) <= 26


def test_a_warm_side_runs_once_untimed_directly_before_it_is_timed():
    calls = []

    def clock() -> float:
        calls.append("clock")
        return float(len(calls))

    take_turns({"side": lambda: calls.append("side")}, 2, clock, warm=True)
    assert calls == ["side", "clock", "side"] + 2 * ["side", "clock", "side", "clock"]


def test_saved_bytes_count_each_memory_once():
    x = torch.ones(1000, requires_grad=True)
    assert bytes_saved(lambda: x * x) == 4000
    assert bytes_saved(lambda: torch.sigmoid(x) * x) == 8000
    assert bytes_saved(lambda: x + 1) == 0


def test_peak_is_the_largest_allocated_memory():
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
    assert Row("x", ratio=ratio).verdict == "" and Row("x", budget=4.0).verdict == "not measured"


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (None, "s", ""),
        (4.4e-9, "s", "4.4 ns"),
        (1.25e-5, "s", "12.5 us"),
        (0.0345, "s", "34.5 ms"),
        (61.0, "s", "61 s"),
        (1620.0, "s", "27.0 min"),
        (3 * 2**30, "B", "3.00 GiB"),
        (2**19, "B", "0.5 MiB"),
        (2560000, "", "2.56e+06"),
    ],
)
def test_figures_are_readable(value, unit, words):
    assert quantity(value, unit) == words


def test_growth_is_the_exponent_of_the_size():
    assert growth(2.0, 32.0, 16) == pytest.approx(1.0) and growth(1.0, 256.0, 16) == pytest.approx(2.0)


MAKEFILE = """
reproduce-table:
\t@echo setup: ready
\t@echo '[1/3] one: AP 40.0 in 2 s'
\t@sleep 0.3
\t@echo '[2/3] other: AP 38.0 in 2 s'
\t@echo '[3/3] third: AP 39.0 in 2 s'
test:
\t@sleep 0.2; exit {code}
"""


@pytest.mark.parametrize("code", [0, 1])
def test_a_clean_clone_is_timed_by_its_output(tmp_path, capfd, code):
    (tmp_path / "Makefile").write_text(MAKEFILE.format(code=code))
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    (tmp_path / "Makefile").write_text("this change is not committed")
    if code:
        with pytest.raises(RuntimeError, match="make test failed"):
            project.clone(quick=False, source=tmp_path)
        return
    first, cores, whole, tests = project.clone(quick=False, source=tmp_path)
    assert 0 < first.ours <= whole.ours - 0.3 and 0 < cores.ours < whole.ours and tests.ours >= 0.2
    assert "3 cells" in whole.what and whole.budget is None
    assert [row.verdict for row in (first, cores, tests)] == ["met"] * 3
    assert "[2/3] other" in capfd.readouterr().out


def test_page_of_the_figures_has_every_row_and_counts_verdicts(tmp_path):
    rows = [
        Row("fast", ours=0.002, theirs=0.01, ratio=5.0, budget=4.0, ours_memory=2**20, note="their package"),
        Row("slow", ours=1.0, theirs=1.0, ratio=1.0, budget=4.0),
        Row("elsewhere", budget=5.0, note="no GPU"),
    ]
    content = {"machine": machine(), "rows": [asdict(row) | {"verdict": row.verdict} for row in rows]}
    (tmp_path / "loss.json").write_text(json.dumps(content))
    page = page_of(tmp_path, ("eval", "loss"))
    assert "| fast | 2 ms | 10 ms | 5 | 1.0 MiB |  | >= 4 | met | their package |" in page
    assert "| elsewhere |  |  |  |  |  | >= 5 | not measured | no GPU |" in page
    assert "1 met, 1 missed, 1 not measured here" in page and "## loss" in page and "## eval" not in page


def test_a_process_returns_its_result_and_its_memory_growth():
    def work(size, _):
        return len(os.urandom(size))  # content that the system cannot share, compress or leave out

    result, seconds, grown = in_a_process(work, (64 << 20, None))
    assert result == 64 << 20 and seconds > 0
    with pytest.raises(RuntimeError, match="without a result"):
        in_a_process(lambda *_: os._exit(1), (0, None))
    if not peak_is_counted():
        pytest.skip("/proc/self/status does not follow this machine's peak memory")
    assert 60 << 20 < grown < 90 << 20


def peak_is_counted() -> bool:
    """Whether the peak memory of a forked process includes 64 MiB that it allocates temporarily."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(peak_grows)


def peak_grows() -> bool:
    def peak() -> int:
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return False
    reset.write_text("5")
    before = peak()
    held = mmap.mmap(-1, 64 << 20)  # new pages, independent of free heap memory
    return held.write(os.urandom(64 << 20)) == 64 << 20 and peak() - before > 60 << 10


def test_enumeration_detects_a_missing_box():
    scores, labels, cells, center = scene(6, 1)
    best, quadruples = enumerate_quadruples(scores[0], labels[0], cells[0], center[0])
    assert len(best) >= 6 and (best.diff() <= 0).all()
    found = group_extremes(scores, labels, cells, center, threshold=0.1, limit=1000)
    assert differing(found, best, quadruples) == 0
    assert differing(found, best[1:], quadruples[1:]) == 1


def test_quick_run_prints_and_writes_every_row(tmp_path, capfd, monkeypatch):
    # Processes have a separate test, because each of them imports all modules.
    monkeypatch.setattr(evaluation, "in_a_process", measured_here)
    main(["loss", "gpu", "eval", "input", "decode", "quick=true", f"results={tmp_path}"])
    files = {
        path.stem: json.loads(path.read_text()) for path in (tmp_path / "benchmark" / "quick").glob("*.json")
    }
    assert set(files) == {"loss", "gpu", "eval", "input", "decode"}
    for content in files.values():
        assert content["quick"] and content["machine"]["torch"] == torch.__version__
        for row in content["rows"]:
            measured = row["ours"] is not None
            assert measured or row["note"] == "no GPU"
            if measured and row["unit"] == "s":
                assert row["ours"] > 0 and row["theirs"] > 0
    apart = [row["ratio"] for row in files["eval"]["rows"] if "difference" in row["what"]]
    assert len(apart) == 2 and max(apart) <= 1e-6
    boxes = [row for row in files["decode"]["rows"] if "differ" in row["what"]]
    assert boxes and all(row["ratio"] == 0 and row["ours"] > 0 for row in boxes)
    printed = capfd.readouterr().out
    assert "torchvision sigmoid_focal_loss" in printed and (torch.cuda.is_available() or "no GPU" in printed)


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_both_sides_of_a_training_step_update_their_weights(name):
    cpu = torch.device("cpu")
    detector = training_step.our_detector(name, 3, cpu)
    training_step.gradient_work(detector, 1, 64, cpu, None, 3)()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in detector.parameters() if p.requires_grad
    )
    training_step.their_step(name, 1, 64, cpu, None)()


def test_a_typo_gives_one_line():
    for wrong, message in (
        ("losses", "no subject 'losses'. Did you mean loss"),
        ("fast=true", "no option 'fast'"),
    ):
        with pytest.raises(ValueError, match=message):
            main([wrong])


def test_each_loss_is_measured_with_focal_loss_and_a_reason_replaces_a_budget(monkeypatch):
    monkeypatch.setattr(remedies, "DETECTORS", {"centernet": "heat maps"})
    afl, ap_loss = remedies.measure(quick=True)
    assert afl.what == "afl / fl, step of centernet (heat maps), CPU" and afl.budget == remedies.BUDGET
    assert ap_loss.budget is None and ap_loss.note == remedies.REASONS["ap_loss"]
    assert afl.theirs == ap_loss.theirs > 0 and afl.ratio == afl.ours / afl.theirs
    assert afl.ours_memory > 0 and set(remedies.REASONS) <= {path.stem for path in CONF.glob("loss/*.yaml")}


def test_the_run_on_a_gpu_is_rehearsed_on_a_cpu_and_its_checks_are_right(monkeypatch):
    monkeypatch.setenv("AFL_TRITON", "on")
    rows = list(gpu.rehearse(detectors=()))
    checks = [row for row in rows if row.what.endswith("error / allowed")]
    assert len(checks) == 3 + 1 + 1 + 3 + 1 + 1 and all(row.verdict == "met" for row in checks)
    # Kernels that were never measured come first.
    assert rows[0].what.startswith("fused losses") and rows[3].what.startswith("anchor matching")
    assert all(row.ours is not None for row in rows)


def test_a_part_that_fails_or_comes_too_late_is_one_line_and_a_wrong_kernel_is_found(monkeypatch):
    monkeypatch.setenv("AFL_TRITON", "on")
    setting = gpu.Setting(torch.device("cpu"), ((64, 5),), 1, 128, 1, small=True)

    def broken():
        raise MemoryError("too large")

    monkeypatch.setattr(gpu, "_parts", lambda setting: {"broken": broken})
    (row,) = gpu._run(setting)
    assert row.verdict == "not measured" and row.note == "MemoryError: too large"
    (row,) = gpu._run(setting, seconds=-1.0)
    assert row.note.startswith("no time left")
    monkeypatch.setattr(gpu_checks, "rows_at", lambda values, position, distinct: values[position].float())
    check, _ = gpu_checks.rows_of_positives(torch.device("cpu"), small=True)
    assert check.verdict == "missed"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is measured")
def test_figures_of_a_gpu_are_kept_where_there_is_none(tmp_path, capsys):
    file = tmp_path / "benchmark" / "gpu.json"
    file.parent.mkdir()
    content = {"machine": machine() | {"gpu": "H200"}, "quick": False, "rows": []}
    file.write_text(json.dumps(content))
    main(["gpu", f"results={tmp_path}"])
    assert json.loads(file.read_text()) == content and "stay as they are" in capsys.readouterr().out
    assert "## gpu" in (file.parent / "README.md").read_text()
