"""The report's page in a real browser, and its figures compared with manually computed means and intervals."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace

import numpy as np
import pytest
import yaml

from afl.reporting import TableSpec, build_table
from afl.reporting.names import in_order
from afl.reporting.pages.material import Gallery, Material, styles
from afl.reporting.pages.pictures import correct
from afl.reporting.pages.report import report
from afl.tracking import Picture
from tests.reporting.browser import visit
from tests.reporting.conftest import make_record

T_ONE = 12.7062  # Student's t, 97.5 %, one degree of freedom
CLASSES = {"tin <can>": ("f", 900), "net & rope": ("c", 60), "snail": ("r", 4)}
VALUES = {"fl": (0.40, 0.44), "afl": (0.50, 0.541), "ohem": (0.30, 0.45)}


def picture(name: str) -> Picture:
    generator = np.random.default_rng(len(name))
    return Picture(
        name=name,
        pixels=generator.integers(0, 256, (60, 80, 3), dtype=np.uint8),
        boxes=np.array([[10.0, 10.0, 30.0, 40.0], [50.0, 5.0, 70.0, 25.0]]),
        labels=np.array([0, 2]),
        found_boxes=np.array([[11.0, 10.0, 30.0, 40.0], [10.0, 12.0, 30.0, 40.0], [50.0, 5.0, 70.0, 25.0]]),
        found_scores=np.array([0.8, 0.9, 0.7]),
        found_labels=np.array([0, 0, 1]),
    )


@pytest.fixture(scope="module")
def material() -> Material:
    """Two detectors, three losses, two seeds, with curves, gradients and pictures."""
    parts = [3.0, 2.0, 1.0]
    curves = {
        f"gradient/heat/{sign}/{group}/sum": parts for sign in ("positive", "negative") for group in "rcf"
    } | {
        "gradient/heat/adaptive_gradient/kappa": [1.0, 0.3, 0.0],
        "gradient/heat/adaptive_gradient/ghat": parts,
    }
    records = []
    for detector, shift in (("fcos", 0.0), ("centernet", 0.1)):
        for loss, values in VALUES.items():
            for seed, value in enumerate(values):
                made = make_record(
                    detector, loss, seed,
                    metrics={"AP": value + shift, "AP_r": value, "AP_c": value + 0.01, "AP_f": None},
                    per_class={name: value + shift for name in CLASSES},
                    groups={name: group for name, (group, _) in CLASSES.items()},
                    gradient_dynamics={"steps": [10, 20, 30], "share": {}, "curves": curves},
                )  # fmt: skip
                records.append(replace(made, key=f"{detector}-{loss}-{seed}"))
    table = build_table(
        records, TableSpec("toy", ["fcos", "centernet"], list(VALUES), ["shapes"], [0, 1], title="Toy <1>")
    )
    groups, names = [group for group, _ in CLASSES.values()], list(CLASSES)
    return Material(
        tables=[table],
        instances={"shapes": {name: count for name, (_, count) in CLASSES.items()}},
        curves={
            r.key: [{"step": 10 * k, "loss/total": 3.0 / k, "val/AP": k / 9} for k in range(1, 6)]
            for r in records
        },
        galleries=[
            Gallery(r, names, groups, [picture("1"), picture("22")])
            for r in records
            if r.seed == 0 and r.loss != "ohem"
        ],
        missing=["Some <thing> is not here"],
    )


@pytest.fixture(scope="module")
def html(material) -> str:
    return report(material)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_browser_shows_everything_in_both_themes_without_console_messages(html, tmp_path, width, dark):
    page = tmp_path / "report.html"
    page.write_text(html, encoding="utf-8")
    seen = visit(page, tmp_path, width=width, dark=dark)
    assert seen["errors"] == [] and seen["console"] == [] and seen["requests"] == []
    assert seen["pictures"] == [80, 80] and seen["uses"] == 0
    assert seen["charts"] >= 20 and seen["spilled"] == []
    assert seen["system"] == seen["back"] == ("rgb(18, 22, 29)" if dark else "rgb(255, 255, 255)")
    assert seen["other"] == ("rgb(255, 255, 255)" if dark else "rgb(18, 22, 29)")
    assert len(seen["selects"]) >= 4 and all(options > 1 and shown == 1 for options, shown in seen["selects"])
    assert (
        seen["width"] <= width + 110 and seen["overflow"] <= 0
    )  # only tables and the navigation scroll horizontally


def test_figures_are_the_means_intervals_and_paired_differences_of_the_seeds(html):
    row = re.search(r"<tr><td>FCOS</td>(.*?)</tr>", html, re.DOTALL)[1]
    cells = re.findall(r"<td[^>]*><b>([\d.]+)</b>(?: ± ([\d.]+))?<small>([^<]*)</small>", row)
    assert len(cells) == 3
    for (mean, half, difference), (loss, values) in zip(cells, VALUES.items(), strict=True):
        assert float(mean) == pytest.approx(100 * statistics.mean(values), abs=0.051)
        assert float(half) == pytest.approx(100 * T_ONE * statistics.stdev(values) / 2**0.5, abs=0.051)
        if loss == "fl":
            continue
        by_seed = [a - b for a, b in zip(values, VALUES["fl"], strict=True)]
        shown, own = (float(text.replace("−", "-")) for text in difference.split(" ± "))
        assert shown == pytest.approx(100 * statistics.mean(by_seed), abs=0.051)
        assert own == pytest.approx(100 * T_ONE * statistics.stdev(by_seed) / 2**0.5, abs=0.051)
    # 10.0 and 10.1 points exclude zero; -10 and +1 do not. On AP, AP_r and AP_c for both detectors: 6 of 12.
    assert "That holds for 6 of 12 differences" in html
    assert row.count('class="sure') == 1


def test_a_mean_over_fewer_seeds_than_the_table_has_is_marked(record, material):
    runs = [record(loss=loss, seed=seed) for loss, seed in (("fl", 0), ("fl", 1), ("afl", 0))]
    table = build_table(
        runs, TableSpec("runs", ["fcos"], ["fl", "afl"], ["shapes"], [0, 1], ["AP"], baseline="fl")
    )
    page = report(replace(material, tables=[table]))
    assert page.count(" [1/2]<small>") == 1 and "[2/2]" not in page


def test_names_are_escaped_and_the_page_has_no_external_references(html):
    assert "tin &lt;can&gt;" in html and "net &amp; rope" in html and "Toy &lt;1&gt;" in html
    assert "<can>" not in html and "<thing>" not in html
    assert not re.search(r'(?:href|src)="(?!#|data:)', html) and "http" not in html.replace("http-equiv", "")


def test_the_same_records_give_the_same_bytes(html, material):
    assert html == report(material)


def test_only_the_better_of_two_detections_of_an_object_is_right():
    # The second one overlaps less but has a higher score and is matched first; the third has the wrong class.
    assert correct(picture("1")).tolist() == [False, True, False]


def test_detectors_are_in_the_order_of_the_benchmarks_table(repository):
    table = yaml.safe_load((repository / "conf" / "table" / "shapes.yaml").read_text())["detectors"]
    assert in_order(["zebra", *sorted(table), "alpaca"]) == [*table, "alpaca", "zebra"]


def test_a_report_without_finished_runs_says_so(record):
    failed = build_table(
        [record(status="failed", error="x")], TableSpec("t", ["fcos"], ["fl"], ["shapes"], [0])
    )
    with pytest.raises(ValueError, match="no table has a finished run"):
        report(Material(tables=[failed]))


def test_the_browser_check_detects_errors_broken_pictures_and_requests(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><html><head></head><body><section><button id='theme'>x</button>"
        "<img src='data:image/png;base64,AAAA'><img src='file:///nowhere.png'></section>"
        "<div style='width:9000px'>wide</div>"
        "<script>console.error('oh'); undefinedFunction();</script></body></html>",
        encoding="utf-8",
    )
    seen = visit(page, tmp_path, width=390)
    assert seen["pictures"] == [0, 0] and seen["overflow"] > 0
    assert any("undefinedFunction" in line for line in seen["errors"])
    assert any("oh" in line for line in seen["console"])


def test_many_classes_are_averaged_in_bins_of_equal_size(material):
    (table,) = material.tables
    names = {f"class {k}": k + 1 for k in range(200)}
    values = {"fl": 0.2, "afl": 0.4, "ohem": 0.1}
    cells = {
        cell: replace(run, per_class={n: values[cell[2]] + c / 1000 for n, c in names.items()})
        for cell, run in table.cells.items()
    }
    html = report(replace(material, tables=[replace(table, cells=cells)], instances={"shapes": names}))
    # Ten bins of twenty classes; the first of them has the classes with 1 to 20 instances, 10.5 on average.
    assert "afl, 20 classes: 41.0" in html or "afl, 20 classes: 41.1" in html
    assert "fl, 20 classes: 21.0" in html or "fl, 20 classes: 21.1" in html
    assert "class 7," not in html


def test_a_loss_has_one_colour_in_every_table():
    def spec(*losses: str) -> TableSpec:
        return TableSpec("t", ["fcos"], losses, ["shapes"], [0])

    many = [f"other{k}" for k in range(9)]
    small, large = styles(spec("fl", "afl")), styles(spec("fl", *many, "cbl", "afl"))
    assert small == {"fl": "s0", "afl": "s1"}
    assert (large["fl"], large["afl"], large["cbl"]) == ("s0", "s1", "s2")
    assert len({style for style in large.values() if style != "sx"}) == 7 and large["other8"] == "sx"


def test_the_navigation_names_tables_by_their_labels_and_runs_without_focal_loss_have_no_differences(
    record, material
):
    labelled = replace(material.tables[0], spec=replace(material.tables[0].spec, label="Other data sets"))
    runs = [record(loss=loss, seed=0) for loss in ("ohem", "afl")]
    own = build_table(
        runs,
        TableSpec(
            "runs", ["fcos"], ["afl", "ohem"], ["shapes"], [0], ["AP"], baseline=None, label="Your runs"
        ),
    )
    page = report(replace(material, tables=[own, labelled]))
    assert '<a href="#results-toy">Other data sets</a>' in page and ">Your runs</a>" in page
    assert "Table toy" not in page
    section = page.split('<section id="results-runs">')[1].split("</section>")[0]
    assert "Difference to" not in section and "no differences are shown" in section
