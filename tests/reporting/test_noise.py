"""Spread over seeds against NumPy's standard deviations and printed t quantiles, and against noise that was put in."""

from __future__ import annotations

import math

import numpy as np
import pytest

from afl.reporting import TableSpec, build_table
from afl.reporting.noise import Noise, differences, noise_of, pooled, to_markdown
from scripts.report import main
from scripts.report_documents import ROOT

T4 = 2.776445  # printed 0.975 quantile of Student's t with four degrees of freedom


def test_one_group_is_numpys_standard_deviation_and_groups_pool_their_squares():
    one, other = {0: 0.40, 1: 0.46, 2: 0.43}, {0: 0.9, 3: 0.7}
    assert pooled([one])[0] == pytest.approx(np.std(list(one.values()), ddof=1))
    squares = 2 * np.var(list(one.values()), ddof=1) + np.var(list(other.values()), ddof=1)
    spread, freedom = pooled([one, other, {5: 0.1}, {}])
    assert freedom == 3 and spread == pytest.approx(math.sqrt(squares / 3))
    assert pooled([{0: 1.0}]) == (None, 0)


def test_what_all_arms_share_by_seed_is_no_noise_of_a_difference():
    shared = {0: 0.0, 1: 0.1, 2: -0.2}
    values = {
        arm: {seed: base + move for seed, move in shared.items()} for arm, base in (("fl", 0.4), ("afl", 0.5))
    }
    assert pooled(differences(values, "fl").values())[0] == pytest.approx(0.0)
    assert pooled(values.values())[0] == pytest.approx(np.std(list(shared.values()), ddof=1))


def test_half_width_is_the_printed_one():
    assert Noise("fcos", "AP", 0.02, 0.01, 8).half_width(5) == pytest.approx(
        T4 * 0.01 / math.sqrt(5), rel=1e-6
    )
    assert Noise("fcos", "AP", None, None, 0).half_width(5) is None


def test_noise_that_was_put_in_comes_out(record):
    random = np.random.default_rng(0)
    seeds = list(range(400))
    records = [
        record(detector, loss, seed, metrics={"AP": 0.4 + random.normal(0, 0.02)})
        for detector in ("fcos", "retinanet")
        for loss in ("fl", "afl")
        for seed in seeds
    ]
    spec = TableSpec("noise", ["fcos", "retinanet"], ["fl", "afl"], ["shapes"], seeds, metrics=["AP"])
    table = build_table(records, spec)
    found = {noise.row: noise for noise in noise_of(table)}
    assert found["fcos"].spread == pytest.approx(0.02, rel=0.1)
    assert found["fcos"].paired == pytest.approx(0.02 * math.sqrt(2), rel=0.1)
    assert found["average"].spread == pytest.approx(0.02 / math.sqrt(2), rel=0.1)
    text = to_markdown(list(found.values()), 5)
    assert f"{100 * found['fcos'].spread:.1f} / {100 * T4 * found['fcos'].paired / math.sqrt(5):.1f}" in text


def test_the_command_writes_what_it_prints_and_refuses_one_seed(tmp_path, capsys):
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "records").symlink_to(ROOT / "results" / "search" / "records")
    main(["noise", "table=search", f"results={tmp_path}"])
    assert (tmp_path / "search" / "noise.md").read_text(encoding="utf-8") in capsys.readouterr().out + "\n"
    only = tmp_path / "other" / "search" / "records"
    only.mkdir(parents=True)
    for path in sorted((ROOT / "results" / "search" / "records").glob("*-fl-s0.json")):
        (only / path.name).write_bytes(path.read_bytes())
    with pytest.raises(SystemExit, match="needs two"):
        main(["noise", "table=search", f"results={tmp_path / 'other'}"])
    with pytest.raises(ValueError, match="Did you mean"):
        main(["noise", "tables=search"])
