"""The rule of the search for AFL's defaults against scores and standard errors worked out by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from afl.reporting import load_records
from afl.reporting.choice import arm_scores, choose, to_markdown
from afl.tracking import FINISHED
from scripts.report import main
from scripts.report_documents import ROOT


def run(loss, seed, ap, rare, status=FINISHED):
    metrics = {"AP": ap, "AP_r": rare}
    return SimpleNamespace(loss=loss, detector="fcos", seed=seed, status=status, metrics=metrics)


RUNS = [
    run("fl", 0, 0.50, 0.30), run("fl", 1, 0.52, 0.34), run("fl", 2, 0.60, 0.40),
    run("start", 0, 0.52, 0.34), run("start", 1, 0.53, 0.37),
    run("up", 0, 0.56, 0.38), run("up", 1, 0.55, 0.37),       # ahead by 0.04 and 0.01: 0.025 +- 0.015
    run("noisy", 0, 0.60, 0.42), run("noisy", 1, 0.50, 0.32),  # ahead by 0.08 and -0.04: 0.02 +- 0.06
    run("noisy", 2, 0.0, 0.0, status="failed"),
]  # fmt: skip


def test_scores_are_means_of_both_differences_to_the_baseline():
    scores = arm_scores(RUNS, "fl")
    assert scores["start"] == pytest.approx({("fcos", 0): 0.03, ("fcos", 1): 0.02})
    assert set(scores["noisy"]) == {("fcos", 0), ("fcos", 1)} and set(scores["fl"].values()) == {0.0}


def test_a_level_moves_only_if_it_is_ahead_by_more_than_its_standard_error():
    levels = choose(arm_scores(RUNS, "fl"), "start", {"a": ["up"], "b": ["noisy"], "c": ["noisy", "up"]})
    found = {(level.factor, level.arm): level for level in levels}
    up, noisy = found["a", "up"], found["b", "noisy"]
    assert (up.ahead, up.error, up.score) == pytest.approx((0.025, 0.015, 0.05))
    assert (noisy.ahead, noisy.error) == pytest.approx((0.02, 0.06))
    assert [key for key, level in found.items() if level.chosen] == [("a", "up"), ("b", "start"), ("c", "up")]
    text = to_markdown(levels)
    assert "| a | up | +5.0 | +2.5 ± 1.5 | yes |" in text and "| b | start | +2.5 | (start) | yes |" in text


def test_one_pair_decides_nothing_and_none_is_an_error():
    scores = arm_scores([r for r in RUNS if r.seed == 0], "fl")
    up = choose(scores, "start", {"a": ["up"]})[1]
    assert up.ahead > 0 and math.isinf(up.error) and not up.chosen
    with pytest.raises(ValueError, match="other"):
        choose(scores, "start", {"a": ["other"]})


def test_the_committed_choice_is_what_the_committed_records_give(tmp_path, capsys):
    records = ROOT / "results" / "search" / "records"
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "records").symlink_to(records)
    main(["choice", f"results={tmp_path}"])
    committed = (ROOT / "results" / "search" / "choice.md").read_text(encoding="utf-8")
    assert (tmp_path / "search" / "choice.md").read_text(encoding="utf-8") == committed
    assert committed in capsys.readouterr().out
    # The arm that the rule takes is what `afl` is now: every run of it has the settings that `loss=afl` has.
    (chosen,) = {
        line.split("|")[2].strip()
        for line in committed.splitlines()
        if "all that moved" in line and "yes" in line
    }
    runs = [r for r in load_records(sorted(records.glob("*.json"))) if r.loss == chosen]
    from omegaconf import OmegaConf

    today = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "loss" / "afl.yaml"))
    assert runs and all(r.config["loss"] == today for r in runs)
