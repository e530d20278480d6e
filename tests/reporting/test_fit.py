"""Training images beside validation images: means by hand, and figures equal to those of the evaluate command."""

import json

import pytest

from afl.reporting.fit import rows_of, to_markdown
from afl.tracking import write_record
from afl.training import run_cell
from afl.training.compose import compose_cell
from scripts.evaluate import main as evaluate
from scripts.report import main


def test_means_are_over_the_seeds_that_every_loss_has_and_the_average_over_detectors(record):
    values = {
        ("fcos", "fl", 0): (0.5, 0.3), ("fcos", "fl", 1): (0.7, 0.4), ("fcos", "fl", 2): (0.9, 0.9),
        ("fcos", "afl", 0): (0.6, 0.3), ("fcos", "afl", 1): (0.8, 0.5),
        ("centernet", "fl", 0): (0.2, 0.1), ("centernet", "afl", 0): (0.4, 0.2), ("objectbox", "fl", 0): (0.4, 0.2),
    }  # fmt: skip
    records = [record(*cell, metrics={"AP": 0.1, "AP_r": new}) for cell, (_, new) in values.items()]
    seen = {one.key: {"AP_r": values[one.detector, one.loss, one.seed][0]} for one in records}
    records.append(record("fcos", "ohem", 0, metrics={"AP_r": 0.99}))
    rows = rows_of(records, seen, ["fl", "afl"], "AP_r")
    assert rows["fcos"] == [pytest.approx((60, 35)), pytest.approx((70, 40))]
    assert rows["centernet"] == [pytest.approx((20, 10)), pytest.approx((40, 20))]
    assert rows["average"] == [pytest.approx((40, 22.5)), pytest.approx((55, 30))]
    assert list(rows) == ["fcos", "centernet", "average"]
    text = to_markdown(rows, ["fl", "afl"], "AP_r")
    assert "| AP_r | training images: fl | training images: afl | validation: fl | validation: afl |" in text
    assert "| fcos | 60.0 | 70.0 (+10.0) | 35.0 | 40.0 (+5.0) |" in text
    assert rows_of(records, {}, ["fl"], "AP_r") == {}


def test_the_command_measures_what_evaluate_measures_and_keeps_it(tmp_path, capsys):
    options = [
        "dataset=shapes_lvis", "dataset.folder.num_train=24", "dataset.folder.num_val=10", "initial_weights=null",
        "logger=none", "trainer.progress=none", "trainer.batch_size=4", "trainer.max_duration=8steps",
        "trainer.device=cpu", f"paths.output={tmp_path}/outputs", f"paths.cache={tmp_path}/cache",
    ]  # fmt: skip
    record = run_cell(compose_cell(detector="fcos", loss="fl", overrides=options))
    write_record(tmp_path / "results" / "shapes" / "records" / "one.json", record)
    arguments = ["fit", "losses=[fl]", "metrics=[AP]", f"results={tmp_path}/results"]
    with pytest.raises(SystemExit, match="none of the runs of fl .* runs=FOLDER"):
        main([*arguments, f"runs={tmp_path}/nowhere"])
    main([*arguments, f"runs={tmp_path}/outputs"])
    kept = json.loads((tmp_path / "results/shapes/fit.json").read_text())[record.key]
    evaluate([f"run={tmp_path}/outputs/{record.key}", "dataset.val.split=train"])
    again = json.loads((tmp_path / "outputs" / record.key / "evaluation.json").read_text())
    assert kept == {name: again[name] for name in kept} and kept["AP"] != record.metrics["AP"]
    capsys.readouterr()
    main([*arguments, f"runs={tmp_path}/nowhere"])  # what was measured once needs no weights
    text = (tmp_path / "results/shapes/fit.md").read_text()
    assert text in capsys.readouterr().out
    assert f"| fcos | {100 * kept['AP']:.1f} | {100 * record.metrics['AP']:.1f} |" in text
