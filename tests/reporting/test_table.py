"""Tables compared with golden files and manual computations, and their invariance to the order of records."""

from __future__ import annotations

import csv
import io
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from afl.reporting.pages.results import results_section
from afl.reporting.records import load_records
from afl.reporting.render import _escaped, _latex
from afl.reporting.table import TableSpec, build_table
from afl.tracking.record import write_record

GOLDEN = Path(__file__).parent / "golden"
SPEC = TableSpec(
    name="small",
    detectors=("fcos", "centernet"),
    losses=("fl", "afl", "ohem"),
    datasets=("shapes",),
    seeds=(0, 1),
    metrics=("AP", "AP_r"),
    title="A small table",
)


def one_row(record, values, **changes):
    """A table of one detector: {loss: [AP by seed]}."""
    records = [
        record(loss=loss, seed=seed, metrics={"AP": ap})
        for loss, column in values.items()
        for seed, ap in enumerate(column)
        if ap is not None
    ]
    spec = replace(
        SPEC,
        detectors=("fcos",),
        losses=tuple(values),
        metrics=("AP",),
        seeds=tuple(range(max(map(len, values.values())))),
        **changes,
    )
    return build_table(records, spec)


def shown(table, width=200):
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(table.to_rich())
    return console.file.getvalue()


def test_a_record_without_a_metric_that_the_others_have_is_named(small_records):
    bad = replace(small_records[0], metrics={"AP": 0.3})
    with pytest.raises(ValueError, match=f"record of {bad.key} has no metric 'AP_r'"):
        build_table([bad, *small_records[1:]], SPEC)


@pytest.mark.parametrize("form", ["csv", "folded.csv", "md", "tex"])
def test_small_table_equals_the_golden_file(small_records, form):
    # the golden numbers were checked manually: 31.0 ± 12.7 is (0.30 + 0.32) / 2 ± 12.706 * 0.01
    table = build_table(small_records, SPEC)
    text = {
        "csv": table.to_csv,
        "folded.csv": table.to_folded_csv,
        "md": table.to_markdown,
        "tex": table.to_latex,
    }[form]()
    assert text == (GOLDEN / f"small.{form}").read_text(encoding="utf-8")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(small_records, rng):
    def everything(records):
        table = build_table(records, SPEC)
        return table.to_markdown() + table.to_latex() + table.to_csv() + table.to_folded_csv()

    shuffled = list(small_records)
    rng.shuffle(shuffled)
    assert everything(shuffled) == everything(small_records)


def test_long_csv_equals_the_records(small_records):
    by_cell = {(record.detector, record.loss, str(record.seed)): record for record in small_records}
    rows = list(csv.DictReader(io.StringIO(build_table(small_records, SPEC).to_csv())))
    assert len(rows) == 2 * 3 * 2
    for row in rows:
        record = by_cell.get((row["detector"], row["loss"], row["seed"]))
        assert row["status"] == (record.status if record else "missing")
        for metric in SPEC.metrics:
            value = record.metrics.get(metric) if record else None
            assert row[metric] == ("" if value is None else f"{value:.6f}")


def test_the_average_only_uses_common_seeds_of_all_detectors(small_records):
    block = build_table(small_records, SPEC).blocks[0]
    average = block.rows["average"]
    assert average["fl"].value.mean == pytest.approx((0.30 + 0.32 + 0.40 + 0.42) / 4)
    # centernet's afl failed at seed 0: seed 1 alone is left, and its difference is to the same seed's
    # baseline
    assert (average["afl"].value.n, average["afl"].value.mean) == (1, pytest.approx((0.335 + 0.41) / 2))
    assert average["afl"].difference.mean == pytest.approx((0.335 + 0.41) / 2 - (0.32 + 0.42) / 2)
    assert average["ohem"].value is None


def test_the_difference_of_averages_is_the_average_difference(record):
    rng = random.Random(0)
    records = [
        record(detector, loss, seed, metrics={"AP": rng.random()})
        for detector in ("fcos", "centernet")
        for loss in ("fl", "afl")
        for seed in range(4)
    ]
    spec = replace(SPEC, losses=("fl", "afl"), seeds=(0, 1, 2, 3), metrics=("AP",))
    rows = build_table(records, spec).blocks[0].rows
    parts = [rows[detector]["afl"].difference.mean for detector in spec.detectors]
    assert rows["average"]["afl"].difference.mean == pytest.approx(sum(parts) / 2)


@pytest.mark.parametrize(
    "values, best",
    [
        ({"fl": [0.30, 0.31, 0.32], "afl": [0.33, 0.34, 0.351]}, "afl"),  # a steady gain
        ({"fl": [0.30, 0.31, 0.32], "afl": [0.29, 0.34, 0.36]}, None),  # better on average only
        ({"fl": [0.30, 0.31, 0.32], "afl": [0.20, 0.21, 0.221]}, "fl"),  # the baseline, clearly
        ({"fl": [0.30, 0.31, 0.32], "afl": [0.20, 0.21, 0.221], "cbl": [0.31, 0.30, 0.31]}, None),
        ({"fl": [0.30], "afl": [0.50]}, None),  # one seed is not conclusive
        ({"fl": [0.30, 0.31, 0.32], "afl": []}, None),  # nothing to compare with
        ({"fl": [], "afl": [0.30, 0.31, 0.32]}, None),
    ],
)
def test_only_differences_whose_interval_excludes_zero_are_bold(record, values, best):
    table = one_row(record, values)
    entries = table.blocks[0].rows["fcos"]
    assert [loss for loss, entry in entries.items() if entry.best] == ([best] if best else [])
    assert table.to_markdown().count("**") == 2 + 2 * bool(best)
    assert table.to_latex().count(r"\textbf") == bool(best)


def test_missing_values_are_words_instead_of_numbers(record):
    records = [
        record(loss="fl", metrics={"AP": 0.3, "AP_r": None}),
        replace(
            record(loss="cbl", status="failed", error="out of\n  memory"), metrics={"AP": 0.9, "AP_r": 0.9}
        ),
    ]
    spec = replace(SPEC, detectors=("fcos",), losses=("fl", "cbl", "afl"), seeds=(0,))
    table = build_table(records, spec)
    lines = [line for line in table.to_markdown().splitlines() if line.startswith("| fcos")]
    assert lines == ["| fcos | 30.0 | failed | — |", "| fcos | n/a | failed | — |"]
    assert r"fcos & n/a & failed & --- \\" in table.to_latex()
    blocks = results_section(table).content["blocks"].values()
    words = [[cell["word"] for cell in row["cells"]] for rows in blocks for row in rows]
    assert words == [["", "failed", "not run"], ["undefined", "failed", "not run"]]
    # One finished run shows that the metric is undefined; the missing one is in the notes.
    partly = results_section(build_table(records[:1], replace(spec, seeds=(0, 1)))).content["blocks"]
    assert list(partly.values())[1][0]["cells"][0]["word"] == "undefined"
    assert "Failed: shapes/fcos/cbl/s0 (out of memory)" in table.notes
    assert "Not run yet (1 of 3): shapes/fcos/afl/s0" in table.notes


def test_the_average_of_an_undefined_metric_is_undefined_and_not_missing(record):
    """A data set without rare classes has no AP_r; all runs of the row are there."""
    records = [
        record(detector, "fl", metrics={"AP": 0.3, "AP_r": None}) for detector in ("fcos", "centernet")
    ]
    records.append(record("fcos", "cbl", metrics={"AP": 0.2, "AP_r": None}))
    spec = replace(SPEC, detectors=("fcos", "centernet"), losses=("fl", "cbl"), seeds=(0,))
    lines = build_table(records, spec).to_markdown().splitlines()
    assert [line for line in lines if line.startswith("| average")] == [
        "| average | 30.0 | — |",
        "| average | n/a | — |",
    ]
    undefined = build_table(records, spec).blocks[1].rows["average"]
    assert (undefined["fl"].finished, undefined["fl"].missing) == (1, 0)
    assert (undefined["cbl"].finished, undefined["cbl"].missing) == (0, 1)


def test_an_empty_table_has_no_values():
    table = build_table([], SPEC)
    assert "no finished cell yet" in table.caption
    assert "Not run yet (12 of 12)" in table.notes[0] and "and 6 more" in table.notes[0]
    assert set(re.findall(r"\d+\.\d", table.to_markdown())) == set()
    assert "—" in shown(table)


def test_a_zero_difference_has_no_minus_sign(record):
    table = one_row(record, {"fl": [0.30, 0.31], "afl": [0.2999, 0.3099]})
    assert "(+0.0 ± 0.0)" in table.to_markdown()


def test_caption_states_protocol_device_code_and_reconstruction(record):
    table = one_row(record, {"fl": [0.30, 0.31], "afl_balanced": [0.3, 0.3]}, title="Main table.")
    for words in (
        "Main table. ",
        "seeds 0, 1",
        "95 % t-interval",
        "backbone tiny; image size 96; schedule 24 epochs",
        "Device: Some CPU, 1 thread.",
        "Code: source aaaaaa, commit 0123456.",
        "AFL here is a reconstruction",
    ):
        assert words in table.caption
    assert table.notes == []
    assert "reconstruction" not in one_row(record, {"fl": [0.30], "baflo": [0.3]}).caption


@pytest.mark.parametrize(
    ("note", "words"),
    [
        ("2 together; group means leave out 0 classes", "folds 2 together."),
        (
            "2 together; group means leave out 1 classes, without hat",
            "folds 2 together; group means exclude one class (hat).",
        ),
        (
            "2 together; group means leave out 2 classes, without hat, tie",
            "folds 2 together; group means exclude 2 classes (hat, tie).",
        ),
    ],
)
def test_the_caption_names_the_classes_that_folds_exclude(record, note, words):
    spec = replace(SPEC, detectors=("fcos",), losses=("fl",), metrics=("AP",), seeds=(0,))
    assert words in build_table([record(protocol={"folds": note})], spec).caption


def test_mixed_states_of_the_code_and_protocols_are_named(record):
    records = [record(loss=loss, seed=seed) for loss in ("fl", "afl") for seed in (0, 1)]
    git = {"sha": "f" * 40, "dirty": True, "source": "cccccc"}
    records[3] = replace(records[3], git=git, data_hash="of other images")
    records[2] = replace(records[2], protocol=records[2].protocol | {"schedule": "12 epochs"})
    spec = replace(SPEC, detectors=("fcos",), losses=("fl", "afl"), metrics=("AP",))
    table = build_table(records, spec)
    assert any(
        "2 states of the code" in note and note.endswith("Run again: shapes/fcos/afl/s1")
        for note in table.notes
    )
    unlike = "Protocol or data differ from fl's in the same row: shapes/fcos/afl/s0, shapes/fcos/afl/s1"
    assert unlike in table.notes
    assert "schedule 12 epochs / 24 epochs" in table.caption
    assert "commit fffffff with changes" in table.caption


def test_other_initial_weights_than_the_baselines_are_named(record):
    def started(loss: str, seed: int, weights: str | None):
        one = record(loss=loss, seed=seed)
        return replace(one, environment=one.environment | {"initial_weights": weights})

    # Without a digest, as in older records, nothing is said.
    records = [
        started("fl", 0, "aaa"),
        started("afl", 0, "aaa"),
        started("fl", 1, "aaa"),
        started("afl", 1, "bbb"),
    ]
    records += [record(loss="fl", seed=2), started("afl", 2, "bbb")]
    spec = replace(SPEC, detectors=("fcos",), losses=("fl", "afl"), seeds=(0, 1, 2), metrics=("AP",))
    notes = [note for note in build_table(records, spec).notes if "Initial weights" in note]
    assert notes == ["Initial weights differ from fl's in the same row: shapes/fcos/afl/s1"]


def test_another_commit_with_the_same_source_is_the_same_state(record):
    first = record(loss="fl")
    second = replace(record(loss="afl"), git={"sha": "f" * 40, "dirty": True, "source": "aaaaaa"})
    spec = replace(SPEC, detectors=("fcos",), losses=("fl", "afl"), metrics=("AP",), seeds=(0,))
    assert build_table([first, second], spec).notes == []


def test_two_configurations_of_one_entry_are_rejected(record):
    long, short = record(metrics={"AP": 0.3}), record(metrics={"AP": 0.1}, key="shapes-fcos-fl-s0-short")
    spec = replace(SPEC, detectors=("fcos",), losses=("fl",), metrics=("AP",), seeds=(0,))
    with pytest.raises(ValueError, match="shapes/fcos/fl/s0 has several finished runs .*-short"):
        build_table([long, short], spec)
    table = build_table([long, long], spec)
    assert table.blocks[0].rows["fcos"]["fl"].value.mean == 0.3


def test_a_finished_run_is_used_instead_of_a_failed_one(record):
    failed = record(status="failed", key="another", error="x")
    spec = replace(SPEC, detectors=("fcos",), losses=("fl",), metrics=("AP",), seeds=(0,))
    for records in ([failed, record()], [record(), failed]):
        assert build_table(records, spec).blocks[0].rows["fcos"]["fl"].value.mean == 0.3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"losses": ("afl",)}, "baseline 'fl' of table 'small' is not among its losses"),
        ({"seeds": ()}, "table 'small' has no seeds"),
        ({"detectors": ("fcos", "fcos")}, "one of its detectors twice"),
    ],
)
def test_invalid_specifications_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **changes)


def test_an_unknown_metric_is_named_with_the_known_ones(small_records):
    with pytest.raises(ValueError, match="the metric 'APr'; they have AP, AP_r"):
        build_table(small_records, replace(SPEC, metrics=("APr",)))


def test_ap_fixed_follows_ap_if_a_record_has_it(record):
    """The CSV has the columns of the specification, and AP_fixed after AP if one record has it."""
    plain, fixed = {"AP": 0.3, "AP_r": 0.1}, {"AP": 0.4, "AP_fixed": 0.45, "AP_r": 0.2}
    spec = replace(SPEC, metrics=("AP", "AP_r"))
    without = build_table([record("fcos", "fl", metrics=plain)], spec)
    assert without.spec == spec
    found = build_table([record("fcos", "fl", metrics=plain), record("fcos", "afl", metrics=fixed)], spec)
    assert [block.metric for block in found.blocks] == ["AP", "AP_fixed", "AP_r"]
    assert found.blocks[1].rows["fcos"]["afl"].value.mean == 0.45
    assert found.blocks[1].rows["fcos"]["fl"].value is None


@given(st.text(max_size=60))
def test_latex_text_has_no_bare_special_characters(text):
    escaped = _latex(text)
    commands = (
        r"\\(?:textbackslash|textasciitilde|textasciicircum|textless|textgreater)\{\}|\\[{}_%&#$]|\$\\pm\$"
    )
    assert not set(re.sub(commands, "", escaped)) & set("\\{}_%&#$~^<>")


@given(st.text(alphabet="ab|\\*_`<>[]é ", max_size=30))
def test_markdown_text_contains_no_separators_or_markup(text):
    rest = re.sub(r"\\[\\|*`<>\[\]_]", "", _escaped(text))
    assert not set(rest) & set("\\|*`<>[]")
    assert not re.search(r"(?<!\w)_|_(?!\w)", re.sub(r"\\.", "a", _escaped(text)))


def test_every_markdown_row_has_the_same_number_of_cells(small_records):
    rows = [
        line for line in build_table(small_records, SPEC).to_markdown().splitlines() if line.startswith("|")
    ]
    assert {line.count("|") for line in rows} == {5}


def test_terminal_shows_values_and_wall_times(small_records):
    text = shown(build_table(small_records, SPEC))
    assert re.search(r"fcos +31\.0 ± 12\.7 +32\.5 ± 12\.7 +— *\n +\(\+1\.5 ± 0\.0\)", text)
    assert "Failed: shapes/centernet/afl/s0" in text and "reconstruction" in text
    line = next(line for line in text.split("wall time per cell, seconds")[1].splitlines() if "fcos" in line)
    assert line.split() == ["fcos", "72", "73", "72", "73", "—"]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_terminal_shows_every_value_in_full(small_records, width):
    def words(columns: int) -> tuple[set[str], int]:
        text = shown(build_table(small_records, SPEC), columns)
        return {word for word in text.split() if "─" not in word}, max(map(len, text.splitlines()))

    narrow, widest = words(width)
    assert widest <= width and words(300)[0] <= narrow
    assert not any("…" in word for word in narrow)


def test_records_are_found_in_run_folders_and_damaged_ones_are_named(tmp_path, record, caplog):
    for seed in (0, 1):
        write_record(tmp_path / "runs" / f"s{seed}" / "record.json", record(seed=seed))
    kept = tmp_path / "kept.json"
    write_record(kept, record(seed=2))
    (tmp_path / "runs" / "s3").mkdir()
    (tmp_path / "runs" / "s3" / "record.json").write_text('{"schema": 1, ')
    found = load_records([tmp_path / "runs", kept])
    assert [item.seed for item in found] == [0, 1, 2]
    assert "s3/record.json is damaged" in caplog.text
    assert load_records(tmp_path / "runs") == found[:2]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_records(tmp_path / "nowhere")


def test_a_run_folder_that_is_a_link_counts_once(tmp_path, record):
    write_record(tmp_path / "disk" / "s0" / "record.json", record(seed=0))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "s0").symlink_to(tmp_path / "disk" / "s0")
    (tmp_path / "disk" / "s0" / "back").symlink_to(tmp_path / "runs")
    assert [item.seed for item in load_records(tmp_path / "runs")] == [0]


def test_many_losses_are_rows_instead_of_columns(record):
    losses = {f"loss{i}": [0.30 + i / 100, 0.32 + i / 100] for i in range(11)}
    few = {name: losses[name] for name in list(losses)[:10]}
    wide, long = one_row(record, few, baseline="loss0"), one_row(record, losses, baseline="loss0")
    entry = "33.0 ± 12.7 (+2.0 ± 0.0)"  # of loss2, as in the golden files
    for text in (wide.to_markdown(), long.to_markdown()):
        assert text.count(entry) == 1
    assert re.search(r"^\|  \| loss0 \| loss1 .* \| loss9 \|\n.*\n\| fcos \| ", wide.to_markdown(), re.M)
    assert "|  | fcos |\n| --- | ---: |\n| loss0 | 31.0 ± 12.7 |\n" in long.to_markdown()
    assert f"| loss2 | {entry} |" in long.to_markdown()
    assert r"\begin{tabular}{lr}" in long.to_latex() and r"\multicolumn{2}{l}" in long.to_latex()
    assert len(re.findall(r"^loss\d+ & .* \\\\$", long.to_latex(), re.M)) == 11
    printed = shown(long)
    assert len(re.findall(r"^ *loss\d+ ", printed, re.M)) == 22  # values, then wall times
    assert long.to_csv().count("\n") == 23


def test_a_table_without_a_baseline_has_values_and_no_differences(record):
    records = [
        record(loss=loss, seed=seed, metrics={"AP": 0.4 + 0.1 * seed})
        for loss in ("ohem", "afl")
        for seed in (0, 1)
    ]
    spec = TableSpec("own", ["fcos"], ["afl", "ohem"], ["shapes"], [0, 1], metrics=["AP"], baseline=None)
    table = build_table(records, spec)
    entries = [entry for block in table.blocks for row in block.rows.values() for entry in row.values()]
    assert entries and all(entry.difference is None and not entry.best for entry in entries)
    assert [round(entry.value.mean, 6) for entry in entries] == [0.45, 0.45]
    assert "no loss to compare with" in table.caption and "None" not in table.to_markdown()
