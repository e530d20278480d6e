"""The gate over training against means taken by hand, and on committed records."""

from __future__ import annotations

import pytest

from afl.reporting.gate import kappas_of, to_markdown
from scripts.report import main
from scripts.report_documents import ROOT


def dynamics(*kappas):
    """One map for each list of kappas, at steps 50, 100, ..., and something that is none."""
    curves = {f"gradient/map{i}/adaptive_gradient/kappa": values for i, values in enumerate(kappas)}
    steps = [50 * (i + 1) for i in range(len(kappas[0]))]
    return {"steps": steps, "curves": curves | {"gradient/map0/adaptive_gradient/ghat": [9.0] * len(steps)}}


def test_kappa_is_the_mean_over_maps_and_seeds_at_every_quarter(record):
    records = [
        record("fcos", "afl", 0, gradient_dynamics=dynamics([1.0, 0.8, 0.4, 0.0])),
        record("fcos", "afl", 1, gradient_dynamics=dynamics([0.8, 0.6, 0.2, 0.2])),
        record("cornernet", "afl", 0, gradient_dynamics=dynamics([1.0] * 4, [0.5, 0.4, 0.3, 0.0])),
        record(
            "retinanet", "afl", 0, gradient_dynamics=dynamics([0.9, 0.1])
        ),  # two parts: each is two quarters' nearest
        record("fcos", "fl", 0, gradient_dynamics={"steps": [50], "curves": {"gradient_norm": [1.0]}}),
        record("objectbox", "afl", 0, "failed", gradient_dynamics=dynamics([0.3])),
        record("centernet", "afl", 0),
    ]
    found = kappas_of(records, "afl")
    assert list(found) == ["fcos", "cornernet", "retinanet"]
    assert list(found["fcos"].values()) == pytest.approx([0.9, 0.7, 0.3, 0.1])
    assert list(found["cornernet"].values()) == pytest.approx([0.75, 0.7, 0.65, 0.5])
    assert found["retinanet"]["half"] == pytest.approx(0.9) and found["retinanet"]["all"] == pytest.approx(
        0.1
    )
    assert "| mine | cornernet | 0.75 | 0.70 | 0.65 | 0.50 |" in to_markdown({"mine": found})
    assert kappas_of(records, "fl") == {}


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    for name in ("short", "trashcan"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "records").symlink_to(ROOT / "results" / name / "records")
    main(["gate", "tables=[short,trashcan]", f"results={tmp_path}"])
    text = (tmp_path / "gate.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert "| trashcan | centernet | 1.00 | 1.00 | 1.00 | 1.00 |" in text  # its gate never opens
    with pytest.raises(SystemExit, match="no finished run of fl in .* has a gate on record"):
        main(["gate", "tables=[short]", "loss=fl", f"results={tmp_path}"])
