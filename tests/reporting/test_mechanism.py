"""Gradients beside the baseline's against ratios taken by hand, and on committed records."""

from __future__ import annotations

import math

import pytest

from afl.reporting.mechanism import gradient_ratios, to_markdown
from scripts.report import main
from scripts.report_documents import ROOT


def dynamics(rare, common, frequent):
    """Two maps, of which the second adds a tenth; two parts of the training."""
    curves = {"gradient_norm": [9.0, 9.0]}
    for group, values in zip("rcf", (rare, common, frequent), strict=True):
        curves[f"gradient/one/positive/{group}/sum"] = values
        curves[f"gradient/two/positive/{group}/sum"] = [0.1 * value for value in values]
        curves[f"gradient/one/negative/{group}/sum"] = [100.0, 100.0]
    return {"steps": [50, 840], "curves": curves}


def test_ratios_are_those_taken_by_hand(record):
    records = [
        record("fcos", "fl", 0, gradient_dynamics=dynamics([1, 2], [10, 4], [40, 0])),
        record("fcos", "fl", 1, gradient_dynamics=dynamics([3, 2], [10, 4], [40, 0])),
        record("fcos", "afl", 0, gradient_dynamics=dynamics([2, 8], [10, 8], [20, 1])),
        record("fcos", "afl", 1, gradient_dynamics=dynamics([4, 4], [5, 8], [20, 1])),
        record(
            "fcos", "afl", 2, gradient_dynamics=dynamics([900, 900], [900, 900], [900, 900])
        ),  # no fl beside it
        record("fcos", "ohem", 0, "failed"),
    ]
    early, late = gradient_ratios(records, ["afl", "ohem"], "fl", [0, -1])
    assert (early.detector, early.loss, early.until, late.until) == ("fcos", "afl", 50, 840)
    assert early.ratio == pytest.approx({"r": 6 / 4, "c": 15 / 20, "f": 40 / 80})
    assert late.ratio["r"] == pytest.approx(12 / 4) and late.ratio["c"] == pytest.approx(2.0)
    assert math.isnan(late.ratio["f"])
    text = to_markdown([early, late])
    assert "| detector | loss | until step 50 | until step 840 |" in text
    assert "| fcos | afl | 1.5 / 0.8 / 0.5 | 3.0 / 2.0 / nan |" in text


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "records").symlink_to(ROOT / "results" / "search" / "records")
    main(["mechanism", "table=search", "losses=[afl]", f"results={tmp_path}"])
    text = (tmp_path / "search" / "mechanism.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out and text.count("| afl |") == 2
    with pytest.raises(SystemExit, match="no seed with runs of fl and of mine"):
        main(["mechanism", "table=search", "losses=[mine]", f"results={tmp_path}"])
    with pytest.raises(ValueError, match="Did you mean"):
        main(["mechanism", "loss=afl"])
