"""The ranking of a table compared with manually computed differences, exact p values and ratios, also for an incomplete table."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from afl.reporting import TableSpec, answers, build_table, questions
from afl.tables.committed import KeptTable, kept_table
from afl.tracking import write_record
from scripts.report import main

SPEC = TableSpec(
    "small", ["fcos", "retinanet"], ["fl", "rfs", "eql", "acsl"], ["shapes"], [0, 1], ["AP", "AP_r"], "fl"
)
# AP over FL's by (detector, seed), which has the opposite sign in AP_r, and the time and memory of a step as multiples of FL's.
GAINS, NO_GAINS = {"rfs": (0.02, 0.01, 0.03, 0.02), "eql": (-0.01, 0.0, -0.02, -0.01)}, (0, 0, 0, 0)
SIGNS = {"AP": 1, "AP_r": -1, "AP_c": 1, "AP_f": 1}
COSTS = {"rfs": (1.0, 1.0), "eql": (1.25, 1.1)}


def records(record, dataset="shapes", detectors=("fcos", "retinanet"), seeds=(0, 1)):
    places = list(product(("fcos", "retinanet"), (0, 1)))
    return [
        record(
            detector, loss, seed, dataset=dataset,
            metrics={name: 0.3 + sign * GAINS.get(loss, NO_GAINS)[place] for name, sign in SIGNS.items()},
        )
        for place, (detector, seed) in enumerate(places)
        for loss in ("fl", "rfs", "eql")
        if detector in detectors and seed in seeds
    ]  # fmt: skip


def sign_flips(values) -> float:
    total = abs(sum(values))
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True))) for signs in product((1, -1), repeat=len(values))]  # fmt: skip
    return sum(one >= total - 1e-9 for one in sums) / len(sums)


def test_losses_are_sorted_by_gain_with_corrected_p_values_and_costs(record):
    found = questions.ranking(build_table(records(record), SPEC), COSTS)
    assert [one.loss for one in found] == ["rfs", "fl", "eql"]  # acsl has no run
    first, base, last = found
    assert first.gain == pytest.approx(0.02) and base.gains == {} and last.gain == pytest.approx(-0.01)
    assert (first.time, last.time) == pytest.approx((1.0, 1.25)) and last.memory == pytest.approx(1.1)
    # Holm over two losses and two metrics: the two smallest of four p values, which are equal, times four.
    assert sign_flips(GAINS["rfs"]) == 0.125 and sign_flips(GAINS["eql"]) == 0.25
    assert first.p["AP"] == pytest.approx(0.5) and last.p["AP"] == pytest.approx(0.5)
    # Pooled over two detectors: variance within both (5e-5 each), two degrees of freedom, t = 4.302653.
    assert first.gains["AP"].pooled.half == pytest.approx(4.302653 * (5e-5 / 4) ** 0.5, rel=1e-5)
    text = answers.ranking_text(found, SPEC.detectors, "fl")
    assert "| 1 | rfs | **+2.0 ± 1.5** | ± 6.4 (1) | 0.50 | **-2.0 ± 1.5** | 2 x 2 | 1.00 | 1.00 |" in text
    assert "| 2 | fl | — |" in text and "| 1.25 | 1.10 |" in text


def test_a_table_without_a_comparison_is_rejected(record):
    with pytest.raises(ValueError, match="has no loss with a run on every detector"):
        questions.ranking(build_table(records(record)[:1], SPEC), {})


def test_the_most_complete_part_of_a_table_has_the_same_detectors_in_all_its_data_sets(record):
    """Of three data sets the first is complete, one detector has all losses in the second, and none has them in the third."""
    runs = {
        "one": {"fcos": ("fl", "afl"), "retinanet": ("fl", "afl")},
        "two": {"fcos": ("fl", "afl"), "retinanet": ("fl",)},
        "three": {"fcos": ("fl",), "retinanet": ("fl",)},
    }
    made = [
        record(detector, loss, dataset=dataset)
        for dataset, rows in runs.items()
        for detector, losses in rows.items()
        for loss in losses
    ]
    made.append(record("fcos", "afl", status="failed", dataset="three"))
    spec = OmegaConf.create(
        {
            "name": "own", "detectors": ["retinanet", "fcos"], "losses": ["fl", "afl"], "datasets": [*runs], "metrics": ["AP"],
            "baseline": "fl", "title": "",
        }
    )  # fmt: skip
    found = KeptTable(Path(), spec, made).most_complete().spec
    assert (found.datasets, found.detectors) == (["one", "two"], ["fcos"])
    complete = [one for one in made if one.dataset == "one"]
    spec.datasets = ["one"]
    assert KeptTable(Path(), spec, complete).most_complete().spec.detectors == ["retinanet", "fcos"]


def test_an_incomplete_table_is_ranked_over_its_most_complete_detectors(record, tmp_path, capsys):
    """The table has one seed of two of six detectors, and one run of a third."""
    made = records(record, dataset="shapes_lvis", seeds=(0,))
    made.append(record("centernet", "fl", 0, dataset="shapes_lvis", metrics=made[0].metrics))
    for one in made:
        write_record(tmp_path / "remedies" / "records" / f"{one.key}.json", one)
    assert kept_table("remedies", tmp_path).most_complete().spec.detectors == ["retinanet", "fcos"]
    rows = [
        {
            "what": f"{loss} / fl, step of {detector} ({kind}), CPU",
            "ratio": ratio + change,
            "ours_memory": 3,
            "theirs_memory": 2,
        }
        for detector, kind, change in (("retinanet", "anchors", 0.1), ("centernet", "heat maps", -0.3))
        for loss, ratio in (("rfs", 1.0), ("eql", 1.5))
    ]
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "remedies.json").write_text(json.dumps({"rows": rows}))
    main(["ranking", "table=remedies", f"results={tmp_path}"])
    text = (tmp_path / "remedies" / "ranking.md").read_text()
    assert text in capsys.readouterr().out and "averaged over retinanet, fcos;" in text
    assert "| 1 | rfs | +2.5 | — |" in text and "| 2 x 1 | 0.90 | 1.50 |" in text
    main(["trade", "table=remedies", f"results={tmp_path}", f"output={tmp_path}"])
    assert Path(tmp_path / "trade-remedies.png").stat().st_size > 1000
