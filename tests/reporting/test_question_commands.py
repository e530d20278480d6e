"""The commands that answer questions compared with committed files, with AP of committed tables, and with repeated evaluations."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from afl.reporting import load_records, questions
from afl.reporting.frame import frame
from afl.tables.committed import kept_table
from afl.tracking import Record, write_record
from afl.training import run_cell
from afl.training.compose import compose_cell
from scripts.evaluate import main as evaluate
from scripts.report import MODULES, command, main
from scripts.reports.questions import ROOT

COMMITTED = [
    ("choice", [], "search/choice.md"),
    ("noise", ["table=search"], "search/noise.md"),
    ("contrast", ["table=shapes"], "shapes/afl-against-cbfl_instances.md"),
    ("contrast", ["table=confirmation"], "confirmation/afl-contrasts.md"),
    ("contrast", ["table=confirmation", "loss=irfs"], "confirmation/irfs-contrasts.md"),
    ("contrast", ["table=confirmation", "loss=afl_irfs"], "confirmation/afl_irfs-contrasts.md"),
    (
        "contrast",
        ["table=confirmation", "loss=afl_irfs", "against=fl", "other=confirmation_lr"],
        "confirmation/afl_irfs-against-fl-of-confirmation_lr.md",
    ),
    *(
        (
            "contrast",
            ["table=confirmation_repeats", f"loss={loss}"],
            f"confirmation_repeats/{loss}-contrasts.md",
        )
        for loss in ("afl", "irfs", "afl_irfs", "afl_anchored_head_irfs")
    ),
    *(
        (
            "contrast",
            [f"table={table}", "loss=afl_anchored_head_irfs", "against=afl_irfs", f"other={table}"],
            f"{table}/afl_anchored_head_irfs-against-afl_irfs-of-{table}.md",
        )
        for table in ("confirmation_repeats", "confirmation_foda")
    ),
    (
        "contrast",
        ["table=ccp", "loss=afl_anchored_head_irfs"],
        "ccp/afl_anchored_head_irfs-contrasts.md",
    ),
    (
        "contrast",
        ["table=confirmation_foda", "loss=afl_anchored_head_irfs"],
        "confirmation_foda/afl_anchored_head_irfs-contrasts.md",
    ),
    (
        "contrast",
        ["table=confirmation_repeats", "loss=afl_irfs", "against=afl", "other=confirmation_repeats"],
        "confirmation_repeats/afl_irfs-against-afl-of-confirmation_repeats.md",
    ),
    *(
        (
            "contrast",
            ["table=confirmation_repeats", f"loss={loss}", "against=fl", "other=confirmation_repeats_lr"],
            f"confirmation_repeats/{loss}-against-fl-of-confirmation_repeats_lr.md",
        )
        for loss in ("afl", "afl_irfs", "afl_anchored_head_irfs")
    ),
    *(
        (
            "contrast",
            ["table=confirmation_repeats_lr", f"loss={loss}"],
            f"confirmation_repeats_lr/{loss}-contrasts.md",
        )
        for loss in ("irfs", "afl_irfs", "afl_anchored_head_irfs")
    ),
    ("contrast", ["table=ccp", "loss=irfs"], "ccp/irfs-contrasts.md"),
    (
        "contrast",
        ["table=ccp", "loss=afl_anchored_head_irfs", "against=irfs", "other=ccp"],
        "ccp/afl_anchored_head_irfs-against-irfs-of-ccp.md",
    ),
    ("contrast", ["table=bccd"], "bccd/afl-contrasts.md"),
    *(
        ("contrast", [f"table={table}", f"loss={loss}"], f"{table}/{loss}-contrasts.md")
        for table in ("bccd", "trashcan")
        for loss in ("irfs", "afl_irfs", "afl_anchored_head_irfs")
    ),
    *(
        ("contrast", ["table=trashcan_frames", f"loss={loss}"], f"trashcan_frames/{loss}-contrasts.md")
        for loss in ("irfs", "afl_anchored_head_irfs")
    ),
    *(
        ("contrast", ["table=shapes", f"loss={loss}"], f"shapes/{loss}-contrasts.md")
        for loss in ("cbfl_instances", "cbl", "ohem", "ghm", "sampling_free")
    ),
    *(
        (
            "contrast",
            ["table=confirmation_lr", f"loss={loss}", f"against={loss}", "other=confirmation"],
            f"confirmation_lr/{loss}-against-{loss}-of-confirmation.md",
        )
        for loss in ("fl", "afl")
    ),
    (
        "contrast",
        ["table=trashcan_frames", "loss=ablation/afl_head", "against=afl", "other=trashcan_frames"],
        "trashcan_frames/ablation_afl_head-against-afl-of-trashcan_frames.md",
    ),
    ("mechanism", [], "shapes/mechanism.md"),
    ("fit", [], "shapes/fit.md"),
    ("fit", ["table=trashcan"], "trashcan/fit.md"),
    ("classes", [], "trashcan/classes.md"),
    ("gate", [], "gate.md"),
    ("recognition", ["shifts=[0.3,0.6]"], "foda/recognition.md"),
    ("recognition", ["table=ccp"], "ccp/recognition.md"),
    (
        "recognition",
        ["table=confirmation_foda", "losses=[fl,afl,afl_anchored_head]", "shifts=[0.3]"],
        "confirmation_foda/recognition.md",
    ),
    ("contrast", ["table=confirmation_foda"], "confirmation_foda/afl-contrasts.md"),
    (
        "contrast",
        ["table=confirmation_foda", "loss=afl_anchored_head"],
        "confirmation_foda/afl_anchored_head-contrasts.md",
    ),
    ("contrast", ["table=confirmation_foda", "loss=irfs"], "confirmation_foda/irfs-contrasts.md"),
    ("contrast", ["table=confirmation_foda", "loss=afl_irfs"], "confirmation_foda/afl_irfs-contrasts.md"),
    (
        "contrast",
        ["table=confirmation_foda", "loss=afl_irfs", "against=afl", "other=confirmation_foda"],
        "confirmation_foda/afl_irfs-against-afl-of-confirmation_foda.md",
    ),
    ("contrast", ["table=afl_repeats", "loss=irfs"], "afl_repeats/irfs-contrasts.md"),
    ("contrast", ["table=afl_repeats", "loss=afl_irfs"], "afl_repeats/afl_irfs-contrasts.md"),
    (
        "contrast",
        ["table=afl_repeats", "loss=afl_irfs", "against=irfs"],
        "afl_repeats/afl_irfs-against-irfs.md",
    ),
    ("contrast", ["table=remedies"], "remedies/afl-contrasts.md"),
    ("contrast", ["table=remedies", "loss=irfs"], "remedies/irfs-contrasts.md"),
    ("contrast", ["table=remedies", "loss=afl_irfs"], "remedies/afl_irfs-contrasts.md"),
    (
        "contrast",
        ["table=remedies", "loss=afl_anchored_head_irfs"],
        "remedies/afl_anchored_head_irfs-contrasts.md",
    ),
    (
        "contrast",
        ["table=remedies", "loss=irfs", "against=afl", "other=remedies"],
        "remedies/irfs-against-afl-of-remedies.md",
    ),
    ("recognition", ["table=confirmation", "shifts=[0.3,0.6]"], "confirmation/recognition.md"),
]


@pytest.fixture
def results(tmp_path):
    """A copy of results/ whose records are links."""
    for folder in sorted((ROOT / "results").glob("*/records")):
        own = tmp_path / folder.parent.name
        own.mkdir()
        (own / "records").symlink_to(folder)
        for name in ("fit.json", "recognition.json"):
            if (folder.parent / name).exists():
                (own / name).write_bytes((folder.parent / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize(("name", "options", "path"), COMMITTED)
def test_committed_answers_follow_from_the_committed_records(results, capsys, name, options, path):
    main([name, *options, f"results={results}"])
    text = (ROOT / "results" / path).read_text(encoding="utf-8")
    assert (results / path).read_text(encoding="utf-8") == text and text in capsys.readouterr().out


def test_the_committed_tuning_follows_from_its_records(tmp_path):
    folder = ROOT / "results" / "forms" / "fl_tuning"
    (tmp_path / "records").symlink_to(folder / "records")
    main(["tuning", f"folder={tmp_path}"])
    assert (tmp_path / "tuning.md").read_text(encoding="utf-8") == (folder / "tuning.md").read_text(
        encoding="utf-8"
    )


def test_the_choice_of_the_search_equals_the_loss_afl():
    text = (ROOT / "results" / "search" / "choice.md").read_text(encoding="utf-8")
    (chosen,) = {
        line.split("|")[2].strip() for line in text.splitlines() if "all that moved" in line and "yes" in line
    }
    runs = [
        record
        for record in load_records(sorted((ROOT / "results" / "search" / "records").glob("*.json")))
        if record.loss == chosen
    ]
    today = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "loss" / "afl.yaml"))
    assert runs and all(record.config["loss"] == today for record in runs)


def test_the_mean_over_the_classes_of_a_committed_table_is_its_ap():
    table = kept_table("trashcan", ROOT / "results").table()
    found = questions.classes(frame(table.cells), table.spec.detectors, ["fl", "afl"])
    for loss in ("fl", "afl"):
        for seed, ap in table.values("trashcan", "AP")["average"][loss].items():
            assert found[loss, seed].mean() == pytest.approx(ap, abs=1e-12)


def test_the_classes_of_a_table_of_two_data_sets_are_listed_for_each(results):
    main(["classes", "table=photos_fl", "losses=[fl]", "shown=1", f"results={results}"])
    text = (results / "photos_fl" / "classes.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.endswith(":")] == ["ccp:", "foda:"]
    table = kept_table("photos_fl", ROOT / "results").table()
    names = {dataset: set() for dataset in ("ccp", "foda")}
    for (dataset, *_), record in table.cells.items():
        names[dataset] |= record.per_class.keys() if record else set()
    for part, dataset in zip(text.split(":\n\n")[1:], names, strict=True):
        first = part.splitlines()[2].split("|")[1].strip()
        assert first in names[dataset]


def test_a_contrast_with_one_loss_is_written_by_detector(results, capsys):
    main(["contrast", "table=search", "loss=ablation/afl_tau025", "against=fl", f"results={results}"])
    text = (results / "search" / "ablation_afl_tau025-against-fl.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out and "| retinanet | +1.3 ± 1.9 |" in text


def test_only_forms_of_afl_are_compared_by_detector_with_their_weights(results):
    main(["contrast", "loss=ohem", f"results={results}"])
    assert [path.name for path in (results / "shapes").glob("ohem*.md")] == ["ohem-contrasts.md"]


def test_contrasts_of_the_main_table_equal_a_manual_computation(results):
    main(["contrast", f"results={results}"])
    lines = (results / "shapes" / "afl-contrasts.md").read_text(encoding="utf-8").splitlines()
    # The unpooled column is the average row of the committed table; three units cannot give a p value below 2 / 2^3.
    assert any(line.startswith("| afl - fl | AP | +3.8 | 6 x 3 | **± 0.5** (2) |") for line in lines)
    assert any(line.startswith("| afl - cbfl_instances (best other) | AP | +1.4 |") for line in lines)
    assert all("| 0.25 (" in line for line in lines if line.startswith("| afl - "))


def test_impossible_questions_give_one_line(results, tmp_path):
    few = tmp_path / "few"
    for table, pattern in (("trashcan", "*-fl-s0.json"), ("search", "*-fl-s0.json")):
        (few / table / "records").mkdir(parents=True)
        for path in sorted((ROOT / "results" / table / "records").glob(pattern)):
            (few / table / "records" / path.name).symlink_to(path)
    for arguments, words in (
        (["noise", "table=search", f"results={few}"], "needs two"),
        (["noise", "table=search", "seeds=1", f"results={few}"], "seeds is 1, but an interval needs two or more"),
        (["classes", "losses=[fl,afl]", f"results={few}"], "no seed of .* has fl, afl on every detector yet"),
        (["contrast", "table=search", "loss=afl", f"results={few}"], "no loss afl|no seed with afl"),
        (["mechanism", "table=search", "losses=[mine]", f"results={results}"], "no seed with runs of fl and of mine"),
        (["gate", "tables=[short]", "loss=fl", f"results={results}"], "no finished run of fl in .* has a gate"),
        (["recognition", f"results={few}", "table=trashcan", f"runs={tmp_path}"], "runs=FOLDER"),
        (["noise", "tables=search"], "Did you mean table"),
        (["nois"], "Did you mean noise"),
    ):  # fmt: skip
        with pytest.raises((SystemExit, ValueError), match=words):
            main(arguments)


def short_run(tmp_path) -> Record:
    """The record of a run of a few steps in ``outputs``, also kept as one of the table ``shapes`` in ``results``."""
    options = [
        "dataset=shapes_lvis", "dataset.folder.num_train=24", "dataset.folder.num_val=10", "initial_weights=null",
        "logger=none", "trainer.progress=none", "trainer.batch_size=4", "trainer.max_duration=8steps",
        "trainer.device=cpu", f"paths.output={tmp_path}/outputs", f"paths.cache={tmp_path}/cache",
    ]  # fmt: skip
    record = run_cell(compose_cell(detector="fcos", loss="fl", overrides=options))
    write_record(tmp_path / "results" / "shapes" / "records" / "one.json", record)
    return record


def test_fit_gives_the_figures_of_evaluate_and_saves_them(tmp_path, capsys):
    record = short_run(tmp_path)
    arguments = ["fit", "losses=[fl]", "metrics=[AP]", f"results={tmp_path}/results"]
    with pytest.raises(SystemExit, match="none of the runs of fl .* runs=FOLDER"):
        main([*arguments, f"runs={tmp_path}/nowhere"])
    main([*arguments, f"runs={tmp_path}/outputs"])
    kept = json.loads((tmp_path / "results/shapes/fit.json").read_text())[record.key]
    evaluate([f"run={tmp_path}/outputs/{record.key}", "dataset.val.split=train"])
    again = json.loads((tmp_path / "outputs" / record.key / "evaluation.json").read_text())
    assert kept == {name: again[name] for name in kept} and kept["AP"] != record.metrics["AP"]
    capsys.readouterr()
    main([*arguments, f"runs={tmp_path}/nowhere"])  # a saved measurement needs no weights
    text = (tmp_path / "results/shapes/fit.md").read_text()
    assert text in capsys.readouterr().out
    assert f"| fcos | {100 * kept['AP']:.1f} | {100 * record.metrics['AP']:.1f} |" in text


def test_recognition_counts_kept_detections_and_evaluates_shifted_logits(tmp_path):
    record = short_run(tmp_path)
    arguments = ["recognition", "table=shapes", "losses=[fl]", "shifts=[0,3]", f"results={tmp_path}/results"]
    main([*arguments, f"runs={tmp_path}/outputs"])
    kept = json.loads((tmp_path / "results/shapes/recognition.json").read_text())
    plain, unshifted, shifted = (kept[record.key + end] for end in ("", " shift 0", " shift 3"))
    assert plain == unshifted != shifted and {group: n for group, (n, _, _) in plain.items()} == {
        group: n for group, (n, _, _) in shifted.items()
    }
    main([*arguments, f"runs={tmp_path}/nowhere"])


@pytest.mark.parametrize("name", MODULES)
def test_every_command_has_help_with_its_options(name, capsys):
    main([name, "--help"])
    said, found = capsys.readouterr().out, command(name)
    # Help is for a user: lines fit the terminal, and errors are left to the documentation of the code.
    expected = found.document.partition("Raises:")[0]
    assert f"python -m scripts.report {name}" in said and said.split() == expected.split()


def test_help_and_wrong_options_load_no_heavy_module():
    program = (
        "import sys; from scripts.report import main\n"
        "main(['noise', '--help'])\n"
        "try: main(['noise', 'tabel=x'])\n"
        "except ValueError as problem: assert 'Did you mean table' in str(problem)\n"
        "print(sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_figure_of_the_push_has_a_row_for_each_table(results, tmp_path):
    path = main(
        ["push", "tables=[short,trashcan]", "losses=[afl]", f"results={results}", f"output={tmp_path}"]
    )
    assert path.stat().st_size > 10_000 and path.with_suffix(".pdf").exists()
    with pytest.raises(ValueError, match="no table has gradient dynamics of mine"):
        main(["push", "tables=[short]", "losses=[mine]", f"results={results}"])


def test_no_committed_page_shows_a_negative_zero():
    pages = {path: path.read_text(encoding="utf-8") for path in (ROOT / "results").rglob("*.md")}
    assert pages and not [path for path, text in pages.items() if re.search(r"(?<![\d.])-0\.0+(?!\d)", text)]
