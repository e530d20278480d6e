"""Differences between two losses of a table against those taken by hand."""

from __future__ import annotations

import pytest

from afl.reporting import TableSpec, build_table
from afl.reporting.contrast import contrast_of, to_markdown
from scripts.report import main
from scripts.report_documents import ROOT

T1 = 12.7062  # printed 0.975 quantile of Student's t with one degree of freedom


@pytest.fixture
def table(record):
    values = {
        ("fcos", "fl"): [0.40, 0.41],
        ("fcos", "cbfl"): [0.50, 0.52],
        ("fcos", "afl"): [0.53, 0.55, 0.99],  # seed 2 has no pair
        ("centernet", "fl"): [0.3],
        ("centernet", "afl"): [0.2, 0.2],
    }
    records = [
        record(detector, loss, seed, metrics={"AP": ap})
        for (detector, loss), runs in values.items()
        for seed, ap in enumerate(runs)
    ]
    return build_table(
        records,
        TableSpec(
            "small", ["fcos", "centernet"], ["fl", "cbfl", "afl"], ["shapes"], [0, 1, 2], metrics=["AP"]
        ),
    )


def test_differences_are_those_taken_by_hand(table):
    found = contrast_of(table, "afl", "cbfl")
    assert found["fcos"]["AP"].mean == pytest.approx(0.03) and found["fcos"]["AP"].half == pytest.approx(
        0.0, abs=1e-9
    )
    assert found["centernet"]["AP"] is None and found["average"]["AP"] is None
    other = contrast_of(table, "cbfl", "fl")["fcos"]["AP"]
    assert other.mean == pytest.approx(0.105)
    assert other.half == pytest.approx(
        T1 * 0.0070711 / 2**0.5, rel=1e-4
    )  # sd of 0.10 and 0.11, over two seeds
    text = to_markdown(found, "afl", "cbfl")
    assert "| fcos | **+3.0 ± 0.0** |" in text and "| centernet | — |" in text
    assert "| centernet | -10.0 |" in to_markdown(contrast_of(table, "afl", "fl"), "afl", "fl")
    with pytest.raises(ValueError, match="no loss ohem; it has fl, cbfl, afl"):
        contrast_of(table, "ohem", "fl")


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "records").symlink_to(ROOT / "results" / "search" / "records")
    main(["contrast", "table=search", "loss=ablation/afl_tau025", "against=fl", f"results={tmp_path}"])
    text = (tmp_path / "search" / "ablation_afl_tau025-against-fl.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out and "| retinanet | +1.3 ± 1.9 |" in text
