"""Expected figures compared with made-up records, and the lines in conf/table compared with their tables."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from afl.config import CONF, ConfigError
from afl.reporting import TableSpec, build_table
from afl.tables.expected import ABOVE, BELOW, MET, NONE, compared
from afl.tracking import read_record
from scripts.table import main

FILES = sorted(path.stem for path in (CONF / "table").glob("*.yaml") if "expected" in OmegaConf.load(path))


@pytest.fixture(scope="module")
def table():
    """Three seeds of two detectors from the committed records, and a detector without records."""
    folder = CONF.parent / "results" / "shapes" / "records"
    records = [
        read_record(path)
        for path in folder.glob("*.json")
        if path.name.split("-")[1] in ("fcos", "retinanet") and path.name.split("-")[2] in ("fl", "afl")
    ]
    spec = TableSpec(
        name="mine", detectors=["fcos", "retinanet", "centernet"], losses=["fl", "afl"], datasets=["shapes_lvis"], seeds=[0, 1, 2]
    )  # fmt: skip
    return records, build_table(records, spec)


def line(**changes):
    return {"row": "fcos", "loss": "fl", "metric": "AP", "from": 50, "source": "someone"} | changes


def test_the_verdict_depends_on_the_figure_and_its_interval(table):
    records, built = table
    values = [100 * one.metrics["AP"] for one in records if (one.detector, one.loss) == ("fcos", "fl")]
    mean = sum(values) / 3
    wanted = [
        line(),
        line(**{"from": mean + 9}),
        line(to=mean - 9),
        line(row="centernet"),
        line(**{"from": mean + 1}),
        line(**{"from": mean - 5, "to": mean - 1}),
    ]
    found = compared(built, wanted)
    assert [one.verdict for one in found] == [MET, BELOW, ABOVE, NONE, MET, MET]
    assert found[0].mean == pytest.approx(mean)
    assert str(found[0]).startswith(f"fcos fl, AP: expected at least 50 (someone), reached {mean:.1f} ± ")
    assert str(found[3]).endswith("(someone): not trained")


def test_a_difference_is_paired(table):
    records, built = table
    by = {(one.loss, one.seed): one.metrics["AP"] for one in records if one.detector == "retinanet"}
    difference = 100 * sum(by["afl", seed] - by["fl", seed] for seed in range(3)) / 3
    (found,) = compared(built, [line(row="retinanet", loss="afl", over="fl", **{"from": 1.0})])
    assert found.mean == pytest.approx(difference) and "afl over fl" in str(found)


def test_a_line_about_another_row_is_skipped_and_a_wrong_one_is_rejected(table):
    others = [line(row="yolo"), line(metric="AP9"), line(loss="x"), line(dataset="coco"), line()]
    assert [one.what for one in compared(table[1], others)] == ["fcos fl, AP"]
    for changes, words in (({"over": "cbl"}, "baseline"), ({"too": 3}, "'too' is missing or unknown")):
        with pytest.raises(ConfigError, match=words):
            compared(table[1], [line(**changes)])
    with pytest.raises(ConfigError, match="'source'"):
        compared(table[1], [{name: value for name, value in line().items() if name != "source"}])


@pytest.mark.parametrize("name", FILES)
def test_the_lines_of_a_table_name_its_rows_losses_and_metrics(name):
    spec = OmegaConf.load(CONF / "table" / f"{name}.yaml")
    for one in spec.expected:
        assert (
            one.row in (*spec.detectors, "average") and one.loss in spec.losses and one.metric in spec.metrics
        )


def test_the_command_prints_them_and_does_not_change_committed_files(capsys):
    assert {"coco", "lvis", "voc", "shapes"} <= set(FILES)
    results = CONF.parent / "results"
    before = {path: path.stat().st_mtime_ns for path in (results / "shapes").rglob("*")}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("tables", overrides=["table=shapes", "action=build", f"results={results}"])
    main(config)
    assert {path: path.stat().st_mtime_ns for path in (results / "shapes").rglob("*")} == before
    line = r"^average fl, AP: expected at least 30 \(.*\), reached 50\.1 ± \d\.\d: as expected$"
    assert re.search(line, capsys.readouterr().out, re.MULTILINE)


def test_the_papers_claim_on_lvis_is_compared_with_the_runs_of_its_table():
    """Made-up records of all six detectors: AFL 2.5 AP ahead on average, but 1 AP_r behind."""
    spec = OmegaConf.load(CONF / "table" / "lvis.yaml")
    folder = CONF.parent / "results" / "shapes" / "records"
    kept = next(folder.glob("shapes_lvis-fcos-fl-s0*.json"))
    model = read_record(kept)
    records = [
        replace(
            model,
            dataset="lvis",
            detector=detector,
            loss=loss,
            metrics={**model.metrics, "AP": ap, "AP_r": ap_r},
        )
        for i, detector in enumerate(spec.detectors)
        for loss, ap, ap_r in (("fl", 0.20 + i / 100, 0.12), ("afl", 0.225 + i / 100, 0.11))
    ]
    built = build_table(
        records,
        TableSpec(
            name="lvis", detectors=list(spec.detectors), losses=["fl", "afl"], datasets=["lvis"], seeds=[0],
            metrics=list(spec.metrics),
        ),
    )  # fmt: skip
    ahead, rare = compared(built, spec.expected)
    assert (ahead.verdict, rare.verdict) == (MET, BELOW)
    assert (ahead.mean, rare.mean) == (pytest.approx(2.5), pytest.approx(-1.0))
