"""Tables over draws, splits and folds of data sets with made-up records: units, intervals and missing runs."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from afl.reporting import TableSpec, build_table
from afl.reporting.agreement import agreements
from afl.reporting.intervals import t_quantile
from afl.reporting.pages.material import Material
from afl.reporting.pages.results import results_section
from afl.reporting.questions import noise
from afl.reporting.records import unit_name, variant_of
from afl.tables import sweep as sweeping
from afl.tables.cells import Cell, settings_of
from afl.tracking import FAILED, FINISHED, Record, write_record
from scripts.reports.gallery import with_common_images
from scripts.reports.html import tables_of_runs


def record(dataset: str, loss: str, seed: int, ap: float, status: str = FINISHED, **settings) -> Record:
    key = "-".join(
        [dataset, "fcos", loss, f"s{seed}", *(f"{name}{value}" for name, value in settings.items())]
    )
    return Record(
        key=key, status=status, dataset=dataset, detector="fcos", loss=loss, seed=seed, config={"dataset": settings},
        metrics={"AP": ap},
    )  # fmt: skip


SPEC = TableSpec(
    name="photos", detectors=["fcos"], losses=["fl", "afl"], datasets=["ccp", "foda", "bccd"], seeds=[0, 1], metrics=["AP"],
    variants={"ccp": {"split": [0, 1]}, "foda": {"draw": [0, 1]}},
)  # fmt: skip


CCP = dataclasses.replace(SPEC, losses=["fl"], datasets=["ccp"], baseline="fl")


def test_every_variant_with_every_seed_is_a_unit():
    assert SPEC.units("ccp") == ["split0-s0", "split1-s0", "split0-s1", "split1-s1"]
    assert SPEC.units("foda")[0] == "draw0-s0" and SPEC.units("bccd") == [0, 1]
    assert variant_of(unit_name({"split": 0, "size": 2}, 1)) == "split0-size2"


def test_an_interval_is_over_the_units_and_differences_are_within_a_unit():
    figures = {(0, 0): (0.10, 0.13), (1, 0): (0.30, 0.32), (0, 1): (0.12, 0.16), (1, 1): (0.28, 0.31)}
    records = [
        record("ccp", loss, seed, pair[k], split=split)
        for (split, seed), pair in figures.items()
        for k, loss in enumerate(("fl", "afl"))
    ]
    records += [record("bccd", "fl", 0, 0.5)]
    table = build_table(reversed(records), SPEC)
    entry = next(block for block in table.blocks if block.dataset == "ccp").rows["fcos"]["afl"]
    assert (entry.value.n, entry.finished, entry.missing) == (4, 4, 0)
    differences = [0.03, 0.02, 0.04, 0.03]
    spread = math.sqrt(sum((d - 0.03) ** 2 for d in differences) / 3)
    assert entry.difference.mean == pytest.approx(0.03)
    assert entry.difference.half == pytest.approx(t_quantile(3) * spread / 2)
    other = next(block for block in table.blocks if block.dataset == "bccd").rows["fcos"]["fl"]
    assert (other.finished, other.missing) == (1, 1)
    assert (
        "ccp 4 (split 0, 1 x seeds 0, 1), foda 4 (draw 0, 1 x seeds 0, 1), bccd 2 (seeds 0, 1)"
        in table.caption
    )
    assert "ccp,fcos,afl,split1-s1,finished,0.31" in table.to_csv()
    # Three data sets have 8, 8 and 4 cells.
    assert table.notes == [
        "Not run yet (11 of 20): foda/fcos/fl/draw0-s0, foda/fcos/fl/draw1-s0, foda/fcos/fl/draw0-s1, foda/fcos/fl/draw1-s1, "
        "foda/fcos/afl/draw0-s0, foda/fcos/afl/draw1-s0 and 5 more"
    ]


def test_noise_over_seeds_leaves_out_the_differences_between_variants():
    figures = {(0, 0): 0.10, (1, 0): 0.30, (0, 1): 0.12, (1, 1): 0.28}
    table = build_table(
        [record("ccp", "fl", seed, ap, split=split) for (split, seed), ap in figures.items()], CCP
    )
    (own,) = noise(table).itertuples()
    # Two pairs of seeds, each with squares 2 x 0.01^2.
    assert own.freedom == 2 and own.spread == pytest.approx(math.sqrt(4e-4 / 2))
    (agreement,) = agreements(table, table)
    assert agreement.allowed == pytest.approx(t_quantile(2) * own.spread * math.sqrt(1 / 4 + 1 / 4))
    one_seed = dataclasses.replace(CCP, seeds=[0])
    single = build_table(
        [record("ccp", "fl", 0, figures[split, 0], split=split) for split in (0, 1)], one_seed
    )
    (agreement,) = agreements(single, single)
    assert agreement.allowed is None and noise(single).freedom.tolist() == [0]


def test_noise_of_a_difference_leaves_out_the_differences_between_variants():
    gains = {(0, 0): 0.03, (0, 1): 0.05, (1, 0): 0.20, (1, 1): 0.22}
    records = [
        record("ccp", loss, seed, 0.3 + gain * (loss == "afl"), split=split)
        for (split, seed), gain in gains.items()
        for loss in ("fl", "afl")
    ]
    (own,) = noise(build_table(records, dataclasses.replace(CCP, losses=["fl", "afl"]))).itertuples()
    # Two pairs of seeds, each with squares 2 x 0.01^2.
    assert own.paired == pytest.approx(math.sqrt(4e-4 / 2))


def test_a_partly_trained_table_is_compared_over_the_variants_that_it_has():
    """Draws differ by 0.4, seeds by 0.02: the difference between the draws is not noise over seeds."""
    figures = {(0, 0): 0.20, (0, 1): 0.22, (1, 0): 0.60, (1, 1): 0.62}
    kept = build_table(
        [record("ccp", "fl", seed, ap, split=split) for (split, seed), ap in figures.items()], CCP
    )

    def compared(figures: dict[tuple[int, int], float]):
        own = [record("ccp", "fl", seed, ap, split=split) for (split, seed), ap in figures.items()]
        (found,) = agreements(build_table(own, CCP), kept)
        return found

    # Two degrees of freedom; each pair of seeds has the squares 2 x 0.01^2.
    t = 4.302653 * 0.02 / math.sqrt(2)
    one = compared({(0, 0): 0.23})
    assert (one.own, one.kept) == (pytest.approx(0.23), pytest.approx(0.21))
    assert one.allowed == pytest.approx(t * math.sqrt(1 + 1 / 2)) and one.verdict == "within noise"
    # Means of draws 0.24 and 0.61 against 0.21 and 0.61; their noise is half the root of the sum of both variances.
    both = compared({(0, 0): 0.23, (0, 1): 0.25, (1, 0): 0.61})
    assert (both.own, both.kept) == (pytest.approx(0.425), pytest.approx(0.41))
    assert both.allowed == pytest.approx(t * math.sqrt((1 / 2 + 1 / 2) + (1 + 1 / 2)) / 2)


def test_the_page_has_the_runs_of_all_variants():
    pairs = {(0, 0): (0.10, 0.13), (1, 0): (0.30, None)}
    records = [
        record("ccp", loss, seed, pair[k], split=split)
        for (split, seed), pair in pairs.items()
        for k, loss in enumerate(("fl", "afl"))
        if pair[k] is not None
    ]
    table = build_table(records, dataclasses.replace(CCP, losses=["fl", "afl"], seeds=[0]))
    material = Material(tables=[table])
    assert [one.metrics["AP"] for one in material.records(table, "ccp", "fcos", "fl")] == [0.10, 0.30]
    # Differences are within units that have both.
    base, other = material.pairs(table, "ccp", "fcos", "afl")
    assert [one.metrics["AP"] for one in (*base, *other)] == [0.10, 0.13]
    assert results_section(table).content["units"] == 2


def test_the_table_of_all_runs_has_every_variant(tmp_path):
    """Runs of two draws are repetitions and not one run with other settings."""

    def save(run: Record) -> None:
        metrics = dict.fromkeys(("AP", "AP_r", "AP_c", "AP_f"), run.metrics["AP"])
        write_record(tmp_path / run.key / "record.json", dataclasses.replace(run, metrics=metrics))

    for loss, aps in {"fl": (0.1, 0.3), "afl": (0.2, 0.5)}.items():
        for draw, ap in enumerate(aps):
            save(record("foda", loss, 0, ap, draw=draw))
    (table,), notes = tables_of_runs(tmp_path)
    assert notes == [] and table.spec.variants == {"foda": {"draw": [0, 1]}}
    assert table.values("foda", "AP")["fcos"]["afl"] == {"draw0-s0": 0.2, "draw1-s0": 0.5}
    assert table.blocks[0].rows["fcos"]["afl"].difference.mean == pytest.approx(0.15)
    save(record("bccd", "fl", 0, 0.5))
    (table,), _ = tables_of_runs(tmp_path)
    assert table.spec.units("bccd") == [0]


def test_a_record_without_the_variant_is_rejected():
    with pytest.raises(ValueError, match="ccp-fcos-fl-s0 has no dataset.split"):
        build_table([record("ccp", "fl", 0, 0.1)], SPEC)


TABLE = OmegaConf.create(
    {
        "datasets": ["ccp", "foda"],
        "variants": {"ccp": {"split": [0, 1]}, "foda": {"draw": [0, 1]}},
        "folds": {"ccp": ["a", "b"]},
    }
)


def test_a_two_fold_data_set_is_trained_once_for_each_split_and_fold():
    assert settings_of(TABLE, "ccp") == [
        ({"split": 0}, "a"), ({"split": 0}, "b"), ({"split": 1}, "a"), ({"split": 1}, "b"),
    ]  # fmt: skip
    assert settings_of(TABLE, "foda") == [({"draw": 0}, None), ({"draw": 1}, None)]
    assert settings_of(OmegaConf.create({"datasets": ["shapes"]}), "shapes") == [({}, None)]
    assert sweeping.sweeps_of(TABLE) == [["ccp"], ["foda"]]
    assert sweeping.variants(TABLE, "ccp") == ["dataset.split=0,1", "dataset.fold=a,b"]
    assert sweeping.variants(TABLE, "foda") == ["dataset.draw=0,1"]


def test_two_finished_folds_become_one_record(tmp_path, monkeypatch):
    def cell(unit: str, fold: str | None, **status) -> Cell:
        folder = tmp_path / f"ccp-fcos-fl-s0-{unit}-{fold}"
        if status:
            made = dataclasses.replace(record("ccp", "fl", 0, 0.1, **status), key=folder.name)
            write_record(folder / "record.json", made)
        return Cell(folder.name, folder, unit, fold)

    joined = SimpleNamespace(key="both")
    calls = []
    monkeypatch.setattr(sweeping, "fold_record", lambda folders: calls.append(folders) or joined)
    whole = [cell("whole", "a", status=FINISHED), cell("whole", "b", status=FINISHED)]
    half = [cell("half", "a", status=FINISHED), cell("half", "b")]
    failed = [cell("failed", "a", status=FINISHED), cell("failed", "b", status=FAILED)]
    plain = [cell("plain", None, status=FINISHED)]
    found = sweeping.records_of([*half, *whole, *failed, *plain])
    assert [one.key if one is joined else one.status for one in found] == ["both", FAILED, FINISHED]
    assert calls == [[run.folder for run in whole]]


def test_a_gallery_shows_detectors_of_one_variant():
    def run(detector: str, draw: int) -> Record:
        return dataclasses.replace(record("foda", "fl", 0, 0.5, draw=draw), detector=detector)

    # Records by name: FCOS of draw 1 would follow that of draw 0.
    shown = with_common_images(
        [run("fcos", 0), run("fcos", 1), run("objectbox", 0), run("retinanet", 1), run("cornernet", 0)]
    )
    assert {name: one.config["dataset"]["draw"] for name, one in shown.items()} == {
        "fcos": 0,
        "objectbox": 0,
        "cornernet": 0,
    }
    assert with_common_images([]) == {}
    assert set(with_common_images([record("bccd", "fl", 0, 0.5)])) == {"fcos"}
