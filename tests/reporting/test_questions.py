"""Questions about records compared with manually computed means, ratios and deviations, and with simulated noise."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from afl.reporting import TableSpec, answers, build_table, questions
from afl.reporting.frame import CLASS_AP, frame
from afl.reporting.inference import difference

T1, T4 = 12.7062, 2.776445  # printed 0.975 quantiles of Student's t with one and four degrees of freedom
GROUPS = {"rov": "f", "eel": "c", "net": "c", "cup": "r"}


def spec(detectors, losses, seeds, metrics=("AP",)) -> TableSpec:
    return TableSpec("small", detectors, losses, ["shapes"], seeds, metrics=list(metrics))


# ---- the long table ---------------------------------------------------------------------------------------------------------


def test_the_long_table_has_every_defined_figure_of_finished_runs_once(record):
    one = record(
        "fcos", "afl", 3, metrics={"AP": 0.3, "AP_r": None}, per_class={"a": 0.5, "b": None}, groups={"a": "r"},
        gradient_dynamics=pushed([1, 2], [0, 0], [4, 5]) | {}, data_hash="x",
    )  # fmt: skip
    found = frame([one, record("fcos", "fl", 0, "failed")])
    assert set(found.detector) == {"fcos"} and set(found.data) == {"x"} and set(found.unit) == {3}
    by_metric = {metric: own for metric, own in found.groupby("metric")}
    assert by_metric["AP"].value.tolist() == [0.3] and "AP_r" not in by_metric
    assert by_metric[CLASS_AP][["name", "group", "value"]].to_numpy().tolist() == [["a", "r", 0.5]]
    rare = by_metric["positive"][by_metric["positive"].group == "r"]
    assert rare.value.tolist() == pytest.approx([1.1, 2.2]) and rare.step.tolist() == [50, 840]
    assert by_metric["negative"].value.tolist() == pytest.approx([100.0] * 6)


# ---- noise and contrasts ----------------------------------------------------------------------------------------------------


def test_one_group_is_numpys_standard_deviation_and_groups_pool_their_squares():
    one, other = pd.Series([0.40, 0.46, 0.43, np.nan]), pd.Series([0.9, np.nan, 0.7, np.nan])
    assert questions.pooled_deviation(one.to_frame())[0] == pytest.approx(np.std(one.dropna(), ddof=1))
    squares = 2 * np.var(one.dropna(), ddof=1) + np.var(other.dropna(), ddof=1)
    columns = pd.DataFrame({"a": one, "b": other, "c": [0.1, np.nan, np.nan, np.nan], "d": np.nan})
    spread, freedom = questions.pooled_deviation(columns)
    assert freedom == 3 and spread == pytest.approx(math.sqrt(squares / 3))
    assert math.isnan(questions.pooled_deviation(pd.DataFrame({"a": [1.0]}))[0])


def test_noise_shared_by_all_losses_of_a_seed_cancels_in_differences(record):
    records = [
        record("fcos", loss, seed, metrics={"AP": base + move})
        for loss, base in (("fl", 0.4), ("afl", 0.5))
        for seed, move in enumerate((0.0, 0.1, -0.2))
    ]
    (own,) = questions.noise(build_table(records, spec(["fcos"], ["fl", "afl"], [0, 1, 2]))).itertuples()
    assert own.paired == pytest.approx(0.0, abs=1e-12)
    assert own.spread == pytest.approx(np.std([0.0, 0.1, -0.2], ddof=1)) and own.freedom == 4


def test_simulated_noise_is_recovered(record):
    random, seeds = np.random.default_rng(0), list(range(400))
    records = [
        record(detector, loss, seed, metrics={"AP": 0.4 + random.normal(0, 0.02)})
        for detector in ("fcos", "retinanet")
        for loss in ("fl", "afl")
        for seed in seeds
    ]
    found = questions.noise(build_table(records, spec(["fcos", "retinanet"], ["fl", "afl"], seeds)))
    fcos, average = found.loc[("shapes", "fcos", "AP")], found.loc[("shapes", "average", "AP")]
    assert fcos.spread == pytest.approx(0.02, rel=0.1) and average.spread == pytest.approx(
        0.02 / math.sqrt(2), rel=0.1
    )
    assert fcos.paired == pytest.approx(0.02 * math.sqrt(2), rel=0.1)
    assert questions.half_width(0.01, 5) == pytest.approx(T4 * 0.01 / math.sqrt(5), rel=1e-6)
    text = answers.noise_text(found, 5)
    assert f"| fcos | {100 * fcos.spread:.1f} / {100 * T4 * fcos.paired / math.sqrt(5):.1f} |" in text


@pytest.mark.parametrize(("losses", "baseline"), [(["fl"], "fl"), (["fl"], None), (["fl", "afl"], None)])
def test_noise_without_a_difference_is_the_spread_alone(record, losses, baseline):
    """An instrument is chosen with focal loss alone, so its noise is known before there is a difference."""
    aps = (0.40, 0.41, 0.45)
    records = [
        record("fcos", loss, seed, metrics={"AP": ap}) for loss in losses for seed, ap in enumerate(aps)
    ]
    wanted = dataclasses.replace(spec(["fcos"], losses, [0, 1, 2]), baseline=baseline)
    found = questions.noise(build_table(records, wanted))
    (own,) = found.itertuples()
    assert own.spread == pytest.approx(np.std(aps, ddof=1)) and math.isnan(own.paired)
    assert "| fcos | 2.6 / — |" in answers.noise_text(found, 3)


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
    return build_table(records, spec(["fcos", "centernet"], ["fl", "cbfl", "afl"], [0, 1, 2]))


def test_differences_equal_a_manual_computation(table):
    found = questions.contrast(table, "afl", "cbfl")
    fcos = found["shapes", "fcos"]["AP"]
    assert (fcos.mean, fcos.half) == (pytest.approx(0.03), pytest.approx(0.0, abs=1e-9))
    assert found["shapes", "centernet"]["AP"] is None and found["shapes", "average"]["AP"] is None
    other = questions.contrast(table, "cbfl", "fl")["shapes", "fcos"]["AP"]
    assert other.mean == pytest.approx(0.105)
    assert other.half == pytest.approx(T1 * 0.0070711 / 2**0.5, rel=1e-4)  # 0.10 and 0.11 over two seeds
    text = answers.contrast_text(found, "afl", "cbfl")
    assert "| fcos | **+3.0 ± 0.0** |" in text and "| centernet | — |" in text
    assert "| centernet | -10.0 |" in answers.contrast_text(
        questions.contrast(table, "afl", "fl"), "afl", "fl"
    )
    with pytest.raises(ValueError, match="no loss ohem; it has fl, cbfl, afl"):
        questions.contrast(table, "ohem", "fl")


def test_contrasts_use_common_units_of_all_detectors_and_join_data_sets(record):
    values = {  # by data set, detector, loss: AP of each seed
        ("one", "fcos"): {"fl": [0.1, 0.2], "afl": [0.2, 0.4]},
        ("one", "centernet"): {"fl": [0.1, 0.2], "afl": [0.4]},
        ("two", "fcos"): {"fl": [0.3], "afl": [0.6]},
        ("two", "centernet"): {"fl": [0.3], "afl": [0.8]},
    }
    records = [
        record(detector, loss, seed, dataset=dataset, metrics={"AP": ap})
        for (dataset, detector), losses in values.items()
        for loss, runs in losses.items()
        for seed, ap in enumerate(runs)
    ]
    wanted = TableSpec("t", ["fcos", "centernet"], ["fl", "afl"], ["one", "two"], [0, 1], metrics=["AP"])
    ((place, found),) = questions.contrasts(build_table(records, wanted), [("afl", "fl")]).items()
    # Units: (one, 0) with 0.1 and 0.3, (two, 0) with 0.3 and 0.5; seed 1 of the first set lacks a run.
    assert (found.detectors, found.units, found.mean) == (2, 2, pytest.approx(0.3))
    assert found.unpooled.half == pytest.approx(T1 * 0.2 / 2) and found.unpooled.freedom == 1
    # Both detectors change by 0.2 between the units: the sum of squares within detectors is 2 x 0.02, with 2 degrees of freedom.
    assert found.pooled.half == pytest.approx(4.302653 * math.sqrt(0.02 / 4)) and found.pooled.freedom == 2
    # 2 of 4 assignments of signs to units are as far from zero, and 2 of 16 to the four differences.
    text = answers.contrasts_text({place: found})
    assert text.splitlines()[2].endswith("| 0.50 (0.50) | 0.12 (0.12) |")


@pytest.mark.parametrize(
    ("units", "shown"), [(16, "< 0.0001 (< 0.0001)"), (9, "0.0039 (0.0039)"), (6, "0.03 (0.03)")]
)
def test_small_p_values_are_shown_in_full(units, shown):
    """Equal gains in n units have p = 2 / 2^n."""
    text = answers.contrasts_text({("afl", "fl", "AP"): difference(np.full((1, units), 0.01))})
    assert text.splitlines()[2].endswith(f"| {shown} | {shown} |")


def test_a_loss_is_compared_with_that_of_another_table_unit_by_unit(record):
    def table(name: str, loss: str, values: dict[int, tuple[float, float]]):
        records = [
            record(detector, loss, seed, metrics={"AP": ap})
            for seed, both in values.items()
            for detector, ap in zip(("fcos", "centernet"), both, strict=True)
        ]
        sets, seeds = [records[0].dataset], list(values)
        spec = TableSpec(name, ["fcos", "centernet"], [loss], sets, seeds, metrics=["AP"], baseline=None)
        return build_table(records, spec)

    one = table("plain", "afl", {4: (0.5, 0.6), 5: (0.7, 0.8), 6: (0.9, 0.9)})
    other = table(
        "tuned", "fl", {5: (0.6, 0.6), 4: (0.2, 0.2), 7: (0.1, 0.1)}
    )  # another order; one unit is missing
    ((place, found),) = questions.contrasts(one, [("afl", "fl")], other).items()
    assert place == ("afl", "fl of tuned", "AP")
    # Seed 4: 0.3 and 0.4, seed 5: 0.1 and 0.2.
    assert (found.detectors, found.units, found.mean) == (2, 2, pytest.approx(0.25))
    assert found.unpooled.half == pytest.approx(T1 * 0.2 / 2)
    with pytest.raises(ValueError, match="afl"):
        questions.contrasts(one, [("afl", "afl")], other)


def test_the_family_of_a_loss_includes_the_best_other_loss(record):
    """The best one has the highest first metric, averaged over detectors. It is not best in AP_r, nor on FCOS alone."""
    aps = {
        "fl": 0.3,
        "cbfl": 0.31,
        "cbfl_instances": 0.33,
        "cbfl_deferred": 0.32,
        "baflo": 0.4,  # not a form of AFL
        "ohem": 0.2,
        "ablation/afl_head": 0.6,
        "afl": 0.5,
    }

    def run(detector: str, loss: str, seed: int, ap: float):
        return record(detector, loss, seed, metrics={"AP": ap, "AP_r": 1 - ap})

    records = [
        run(detector, loss, seed, ap)
        for detector, eql in (("fcos", 0.45), ("centernet", 0.3))
        for loss, ap in {**aps, "eql": eql}.items()
        for seed in (0, 1)
    ]
    # Only seeds that all losses have choose the best one, apart from losses without any run.
    records += [run(detector, "ohem", 2, 0.9) for detector in ("fcos", "centernet")]
    wanted = spec(["fcos", "centernet"], [*aps, "eql", "acsl"], [0, 1, 2], ["AP", "AP_r"])
    whole = build_table(records, wanted)
    pairs, best = questions.family(whole, "afl")
    standard = ["fl", "cbfl", "cbfl_instances", "cbfl_deferred"]
    assert best == "baflo" and [other for _, other in pairs] == [*standard, "baflo"]
    text = answers.contrasts_text(questions.contrasts(whole, pairs), best)
    assert "| afl - baflo (best other) | AP | +10.0 | 2 x 2 | **± 0.0** (1) |" in text
    assert "| afl - baflo (best other) | AP_r | -10.0 | 2 x 2 | **± 0.0** (1) |" in text
    with pytest.raises(ValueError, match="no loss mine"):
        questions.family(whole, "mine")


# ---- classes ----------------------------------------------------------------------------------------------------------------


def runs_of(record, values, groups=(GROUPS, GROUPS, GROUPS)):
    return frame(
        record(
            *cell, metrics={"AP": 0.1}, per_class=dict(zip(GROUPS, aps, strict=True)), groups=groups[cell[2]]
        )
        for cell, aps in values.items()
    )


@pytest.fixture
def by_class(record):
    return runs_of(
        record,
        {
            ("fcos", "fl", 0): (0.4, 0.1, 0.2, 0.0), ("centernet", "fl", 0): (0.2, 0.3, 0.2, 0.0),
            ("fcos", "afl", 0): (0.1, 0.2, 0.2, 0.1), ("centernet", "afl", 0): (0.1, 0.3, 0.2, 0.1),
            ("fcos", "fl", 1): (0.4, 0.1, 0.2, 0.0), ("centernet", "fl", 1): (0.4, 0.3, 0.2, None),
            ("fcos", "afl", 1): (0.2, 0.2, 0.3, 0.0), ("centernet", "afl", 1): (0.2, 0.3, 0.2, 0.1),
            ("fcos", "fl", 2): (0.9, 0.9, 0.9, 0.9), ("fcos", "afl", 2): (0.0, 0.0, 0.0, 0.0),  # without CenterNet
        },
    )  # fmt: skip


def test_classes_are_means_over_detectors_at_common_seeds(by_class):
    found = questions.classes(by_class, ["fcos", "centernet"], ["fl", "afl"])
    assert sorted(found.index) == sorted(GROUPS.items())
    rov, cup = found.loc[("rov", "f")], found.loc[("cup", "r")]
    assert rov["fl"].tolist() == pytest.approx([0.3, 0.4]) and rov["afl"].tolist() == pytest.approx(
        [0.1, 0.2]
    )
    assert questions.moved_by(rov, "afl", "fl").mean == pytest.approx(-0.2)
    # One detector has no AP of the class at seed 1, so this seed is not used.
    assert cup["fl"].dropna().to_dict() == {0: 0.0} and cup["afl"].tolist() == pytest.approx([0.1, 0.05])


def test_the_classes_with_the_largest_changes_are_first_and_the_others_are_averaged(by_class):
    found = questions.classes(by_class, ["fcos", "centernet"], ["fl", "afl"])
    rows = questions.most_moved(found, "fl", shown=2)
    assert [name for name, _ in rows.index] == ["rov", "cup", "mean of the other 2"]
    assert rows.iloc[-1]["fl"].tolist() == pytest.approx([0.2, 0.2])
    assert rows.iloc[-1]["afl"].tolist() == pytest.approx([(0.25 + 0.2) / 2, (0.25 + 0.25) / 2])
    text = answers.classes_text(rows, "fl")
    assert "| rov | f | 35.0 ± 63.5 | 15.0 ± 63.5 (**-20.0 ± 0.0**) |" in text  # sd 7.07, t 12.706, two seeds
    assert "| cup | r | 0.0 | 7.5 ± 31.8 (+10.0) |" in text
    assert len(questions.most_moved(found, "fl", shown=9)) == 4
    # The others then have the class that lacks an AP at seed 1 of FL, so this seed has no mean of them.
    others = questions.most_moved(found, "fl", shown=1).iloc[-1]
    assert others["fl"].isna().tolist() == [False, True] and others["afl"].notna().all()


def test_a_class_whose_frequency_changes_with_the_data_has_no_group(record):
    runs = {
        (d, loss, seed): (0.1, 0.1, 0.1, 0.1)
        for d in ("fcos", "centernet")
        for loss in ("fl", "afl")
        for seed in (0, 1)
    }
    own = runs_of(record, runs, groups=(GROUPS, GROUPS | {"eel": "f"}))
    found = questions.classes(own, ["fcos", "centernet"], ["fl", "afl"])
    assert dict(found.index) == GROUPS | {"eel": ""}


# ---- gradients --------------------------------------------------------------------------------------------------------------


def pushed(rare, common, frequent):
    """Two maps, the second with a tenth of the gradient, and two parts of the training."""
    curves = {"gradient_norm": [9.0, 9.0]}
    for group, values in zip("rcf", (rare, common, frequent), strict=True):
        curves[f"gradient/one/positive/{group}/sum"] = values
        curves[f"gradient/two/positive/{group}/sum"] = [0.1 * value for value in values]
        curves[f"gradient/one/negative/{group}/sum"] = [100.0, 100.0]
    return {"steps": [50, 840], "curves": curves}


def test_push_ratios_equal_a_manual_computation(record):
    own = frame(
        [
            record("fcos", "fl", 0, gradient_dynamics=pushed([1, 2], [10, 4], [40, 0])),
            record("fcos", "fl", 1, gradient_dynamics=pushed([3, 2], [10, 4], [40, 0])),
            record("fcos", "afl", 0, gradient_dynamics=pushed([2, 8], [10, 8], [20, 1])),
            record("fcos", "afl", 1, gradient_dynamics=pushed([4, 4], [5, 8], [20, 1])),
            record("fcos", "afl", 2, gradient_dynamics=pushed([900, 900], [900, 900], [900, 900])),  # no fl
            record("fcos", "ohem", 0, "failed"),
        ]
    )
    found = questions.push_ratios(own, ["afl", "ohem"], "fl")
    assert found.index.tolist() == [("fcos", "afl", 0), ("fcos", "afl", 1)] and found.step.tolist() == [
        50,
        840,
    ]
    early, late = (row for _, row in found.iterrows())
    assert early[["r", "c", "f"]].tolist() == pytest.approx([6 / 4, 15 / 20, 40 / 80])
    assert late[["r", "c"]].tolist() == pytest.approx([12 / 4, 2.0]) and math.isnan(late.f)
    text = answers.mechanism_text(found, [0, -1])
    assert "| detector | loss | until step 50 | until step 840 |" in text
    assert "| fcos | afl | 1.5 / 0.8 / 0.5 | 3.0 / 2.0 / — |" in text
    assert "only in the batches that a run logs" in text
    assert questions.push_ratios(own, ["ohem"], "fl").empty


def test_push_ratios_pair_the_runs_of_each_data_set(record):
    own = frame(
        [
            record("fcos", "fl", 0, dataset="one", gradient_dynamics=pushed([1, 2], [10, 4], [40, 8])),
            record("fcos", "fl", 0, dataset="two", gradient_dynamics=pushed([7, 7], [70, 7], [70, 7])),
            record("fcos", "afl", 0, dataset="one", gradient_dynamics=pushed([2, 8], [10, 8], [20, 2])),
        ]
    )
    found = questions.push_ratios(own, ["afl"], "fl")
    assert found[["r", "c", "f"]].to_numpy() == pytest.approx(np.array([[2, 1, 0.5], [4, 2, 0.25]]))


def opening(*kappas):
    """One map for each list of kappas, at steps 50, 100, ..., and another curve."""
    curves = {f"gradient/map{i}/adaptive_gradient/kappa": values for i, values in enumerate(kappas)}
    steps = [50 * (i + 1) for i in range(len(kappas[0]))]
    return {"steps": steps, "curves": curves | {"gradient/map0/adaptive_gradient/ghat": [9.0] * len(steps)}}


def test_kappa_is_the_mean_over_maps_and_seeds_at_every_quarter(record):
    own = frame(
        [
            record("fcos", "afl", 0, gradient_dynamics=opening([1.0, 0.8, 0.4, 0.0])),
            record("fcos", "afl", 1, gradient_dynamics=opening([0.8, 0.6, 0.2, 0.2])),
            record("cornernet", "afl", 0, gradient_dynamics=opening([1.0] * 4, [0.5, 0.4, 0.3, 0.0])),
            record(
                "retinanet", "afl", 0, gradient_dynamics=opening([0.9, 0.1])
            ),  # each part is nearest twice
            record("fcos", "fl", 0, gradient_dynamics={"steps": [50], "curves": {"gradient_norm": [1.0]}}),
            record("objectbox", "afl", 0, "failed", gradient_dynamics=opening([0.3])),
            record("centernet", "afl", 0),
        ]
    )
    found = questions.gate_opening(own, "afl")
    assert list(found.index) == ["fcos", "cornernet", "retinanet"]
    assert found.loc["fcos"].tolist() == pytest.approx([0.9, 0.7, 0.3, 0.1])
    assert found.loc["cornernet"].tolist() == pytest.approx([0.75, 0.7, 0.65, 0.5])
    assert found.loc["retinanet"][["half", "all"]].tolist() == pytest.approx([0.9, 0.1])
    assert "| mine | cornernet | 0.75 | 0.70 | 0.65 | 0.50 |" in answers.gate_text({"mine": found})
    assert questions.gate_opening(own, "fl").empty


def test_the_gate_of_objectness_is_not_averaged_with_that_of_the_classes(record):
    dynamics = opening([0.2, 0.0, 0.0, 0.0], [1.0, 0.8, 0.4, 0.2])
    for number, name in enumerate(("objectness", "class")):
        for figure in ("kappa", "ghat"):
            values = dynamics["curves"].pop(f"gradient/map{number}/adaptive_gradient/{figure}", None)
            if values:
                dynamics["curves"][f"gradient/{name}/adaptive_gradient/{figure}"] = values
    found = questions.gate_opening(frame([record("objectbox", "afl", 0, gradient_dynamics=dynamics)]), "afl")
    assert found.loc["objectbox"].tolist() == pytest.approx([1.0, 0.8, 0.4, 0.2])
    assert found.loc["objectbox, objectness"].tolist() == pytest.approx([0.2, 0.0, 0.0, 0.0])


# ---- choice and fit ---------------------------------------------------------------------------------------------------------

SEARCH = {
    "fl": [(0.50, 0.30), (0.52, 0.34), (0.60, 0.40)],
    "start": [(0.52, 0.34), (0.53, 0.37)],
    "up": [(0.56, 0.38), (0.55, 0.37)],  # ahead by 0.04 and 0.01: 0.025 +- 0.015
    "noisy": [(0.60, 0.42), (0.50, 0.32)],  # ahead by 0.08 and -0.04: 0.02 +- 0.06
}


@pytest.fixture
def search(record):
    runs = [
        record("fcos", loss, seed, metrics=dict(zip(("AP", "AP_r"), pair, strict=True)))
        for loss, seeds in SEARCH.items()
        for seed, pair in enumerate(seeds)
    ]
    return frame([*runs, record("fcos", "noisy", 2, "failed")])


def test_a_level_is_only_chosen_if_it_is_ahead_by_more_than_its_standard_error(search):
    levels = questions.choice(search, "fl", "start", {"a": ["up"], "b": ["noisy"], "c": ["noisy", "up"]})
    by_name = levels.set_index(["factor", "arm"])
    up, noisy = by_name.loc[("a", "up")], by_name.loc[("b", "noisy")]
    assert (up.ahead, up.error, up.score) == pytest.approx((0.025, 0.015, 0.05))
    assert (noisy.ahead, noisy.error) == pytest.approx((0.02, 0.06))
    assert by_name.loc[("a", "start")].score == pytest.approx(0.025)  # halves of 0.02 + 0.04 and 0.01 + 0.03
    assert by_name.index[by_name.chosen].tolist() == [("a", "up"), ("b", "start"), ("c", "up")]
    text = answers.choice_text(levels)
    assert "| a | up | +5.0 | +2.5 ± 1.5 | yes |" in text and "| b | start | +2.5 | (start) | yes |" in text


def test_one_pair_is_not_decisive_and_no_pair_is_an_error(search):
    up = questions.choice(search[search.unit == 0], "fl", "start", {"a": ["up"]}).iloc[1]
    assert up.ahead > 0 and math.isinf(up.error) and not up.chosen
    with pytest.raises(ValueError, match="other has no run"):
        questions.choice(search, "fl", "start", {"a": ["other"]})


def test_fit_is_a_mean_over_common_seeds_and_the_average_over_detectors(record):
    values = {
        ("fcos", "fl", 0): (0.5, 0.3), ("fcos", "fl", 1): (0.7, 0.4), ("fcos", "fl", 2): (0.9, 0.9),
        ("fcos", "afl", 0): (0.6, 0.3), ("fcos", "afl", 1): (0.8, 0.5),
        ("centernet", "fl", 0): (0.2, 0.1), ("centernet", "afl", 0): (0.4, 0.2), ("objectbox", "fl", 0): (0.4, 0.2),
    }  # fmt: skip
    records = [record(*cell, metrics={"AP": 0.1, "AP_r": new}) for cell, (_, new) in values.items()]
    seen = {one.key: {"AP_r": values[one.detector, one.loss, one.seed][0]} for one in records}
    own = frame([*records, record("fcos", "ohem", 0, metrics={"AP_r": 0.99})])
    found = questions.fit(own, seen, ["fl", "afl"], "AP_r")
    assert set(found.index) == {"fcos", "centernet", "average"} and found.index[-1] == "average"
    assert found.loc["fcos"].tolist() == pytest.approx([60, 70, 35, 40])
    assert found.loc["average"].tolist() == pytest.approx([40, 55, 22.5, 30])
    text = answers.fit_text(found, "AP_r")
    assert "| AP_r | training images: fl | training images: afl | validation: fl | validation: afl |" in text
    assert "| fcos | 60.0 | 70.0 (+10.0) | 35.0 | 40.0 (+5.0) |" in text
    assert questions.fit(own, {}, ["fl"], "AP_r").empty


def test_fit_leaves_out_a_data_set_without_one_of_the_losses(record):
    runs = [
        record("fcos", loss, 0, dataset=dataset, metrics={"AP": ap})
        for dataset, loss, ap in (("one", "fl", 0.3), ("one", "afl", 0.4), ("two", "fl", 0.9))
    ]
    found = questions.fit(frame(runs), {run.key: run.metrics for run in runs}, ["fl", "afl"], "AP")
    assert found.loc["fcos"].tolist() == pytest.approx([30, 40, 30, 40])


def test_recognition_takes_the_objects_of_common_units_together(record):
    records = [record("fcos", loss, seed) for loss in ("fl", "afl") for seed in (0, 1)] + [
        record("centernet", "fl", 0)
    ]
    counts = {one.key: {"r": (10, 4, 1), "f": (100, 50, 40)} for one in records}
    first, second = (one for one in records if one.loss == "afl")
    parts = f"{first.key}+other"
    counts["other"] = {"r": (10, 6, 5), "f": (100, 50, 20)}
    del counts[second.key]  # so seed 1 has no pair
    records[records.index(first)] = dataclasses.replace(first, key=parts)
    localised, recognised = questions.recognition(frame(records), counts, ["fl", "afl"])
    assert list(localised.index) == ["fcos"]
    assert localised.loc["fcos"].tolist() == pytest.approx([40, 50, 50, 50])
    assert recognised.loc["fcos"].tolist() == pytest.approx([25, 60, 80, 60])
    text = answers.recognition_text(localised, recognised)
    assert "| fcos | fl | 40.0 | 50.0 | 25.0 | 80.0 |" in text
    assert "| fcos | afl | 50.0 (+10.0) | 50.0 (+0.0) | 60.0 (+35.0) | 60.0 (-20.0) |" in text
    assert questions.recognition(frame(records), {}, ["fl"])[0].empty
    both = [record("fcos", "fl", 0), record("fcos", "fl", 0, dataset="ccp")]
    own = {one.key: {"r": (10, 5, n)} for n, one in enumerate(both)}
    _, recognised = questions.recognition(frame(both), own, ["fl"])
    assert recognised.iloc[:, 0].to_dict() == {"ccp fcos": 20, f"{both[0].dataset} fcos": 0}
    pair = [record("fcos", "fl", 0), record("centernet", "fl", 0)]
    own = {one.key: {"r": numbers} for one, numbers in zip(pair, ((10, 5, 1), (100, 20, 8)), strict=True)}
    localised, recognised = questions.recognition(frame(pair), own, ["fl"])
    # The average is over detectors, not over objects.
    assert (*localised.loc["average"], *recognised.loc["average"]) == pytest.approx((35, 30))


def rows_of(figures: dict[str, tuple[float, float, float]]) -> pd.DataFrame:
    """A long table of one detector and one seed: AP, AP_r and AP_f by loss."""
    return pd.DataFrame(
        [
            {"detector": "fcos", "unit": "0", "loss": loss, "metric": metric, "value": value}
            for loss, values in figures.items()
            for metric, value in zip(("AP", "AP_r", "AP_f"), values, strict=True)
        ]
    )


def test_a_form_that_lowers_frequent_classes_on_one_set_is_not_chosen():
    shapes = rows_of({"fl": (0.5, 0.4, 0.6), "greedy": (0.6, 0.6, 0.6), "gentle": (0.52, 0.44, 0.6)})
    photos = rows_of({"fl": (0.3, 0.1, 0.5), "greedy": (0.3, 0.1, 0.48), "gentle": (0.31, 0.12, 0.5)})
    answer = questions.forms({"shapes": shapes, "photos": photos}, "fl", ["greedy", "gentle"], -0.005)
    # Manual computation: (0.10 + 0.20) / 2 and 0; (0.02 + 0.04) / 2 and (0.01 + 0.02) / 2.
    assert answer.loc["greedy", ("score", "shapes")] == pytest.approx(0.15)
    assert answer.loc["gentle", ("mean", "score")] == pytest.approx((0.03 + 0.015) / 2)
    assert list(answer.index) == ["greedy", "gentle"]
    assert list(answer["mean", "chosen"]) == [False, True]
    # A control cannot be chosen. If every form lowers frequent classes, the one with the smallest loss is chosen.
    assert questions.forms({"a": shapes, "b": photos}, "fl", ["greedy"], -0.005)["mean", "chosen"]["greedy"]


def test_a_form_without_runs_on_one_set_has_no_mean_and_is_not_chosen():
    shapes = rows_of({"fl": (0.5, 0.4, 0.6), "one": (0.6, 0.6, 0.6), "both": (0.51, 0.4, 0.6)})
    photos = rows_of({"fl": (0.3, 0.1, 0.5), "both": (0.3, 0.1, 0.5)})
    answer = questions.forms({"shapes": shapes, "photos": photos}, "fl", ["one", "both"], -0.005)
    assert np.isnan(answer.loc["one", ("mean", "score")]) and answer.loc["both", ("mean", "chosen")]


def test_detectors_without_a_setting_are_used_with_their_defaults(record):
    def run(detector, seed, ap, rare, **changed):
        config = {
            "seed": seed,
            "paths": {"output": f"folder{seed}"},
            "subset": None,
            "loss": {"gamma": 2.0},
            "detector": {"alpha": 0.25},
        }
        for name, value in changed.items():
            group, key = name.split("_")
            config[group] = {key: value}
        return record(detector, "fl", seed, metrics={"AP": ap, "AP_r": rare}, config=config)

    records = [
        run("fcos", 0, 0.5, 0.3), run("fcos", 1, 0.6, 0.4), run("fcos", 2, 0.55, 0.35), run("centernet", 0, 0.4, 0.2),
        run("centernet", 1, 0.4, 0.2), run("fcos", 0, 0.7, 0.5, detector_alpha=0.5), run("fcos", 1, 0.7, 0.3, detector_alpha=0.5),
        run("centernet", 0, 0.3, 0.1, loss_gamma=1.0), run("fcos", 0, 0.5, 0.3, loss_gamma=1.0),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"centernet have no most frequent value of loss.gamma"):
        questions.tuning([records[3], records[7]])
    apart = [
        run("centernet", seed, 0.4, 0.2, **{name: 0.0})
        for seed, name in enumerate(("loss_a", "loss_b", "loss_c"))
    ]
    with pytest.raises(ValueError, match="no run of centernet has the defaults"):
        questions.tuning([*records[:3], *apart])
    answer = questions.tuning(records)
    assert list(answer.index) == ["detector.alpha=0.5", "defaults", "loss.gamma=1.0"]
    # Manual computation: FCOS (0.7, 0.4) with alpha, CenterNet with defaults (0.4, 0.2); defaults (0.55, 0.35) and (0.4, 0.2).
    assert answer.loc["detector.alpha=0.5", ("mean", "score")] == pytest.approx((0.7 + 0.4 + 0.4 + 0.2) / 4)
    assert answer.loc["defaults", ("mean", "score")] == pytest.approx((0.55 + 0.35 + 0.4 + 0.2) / 4)
    assert answer.loc["loss.gamma=1.0", ("centernet", "AP_r")] == pytest.approx(0.1)
    text = answers.tuning_text(answer)
    assert "| setting | fcos AP | fcos AP_r | centernet AP | centernet AP_r | mean score |" in text
    assert (
        "| detector.alpha=0.5 | 70.0 (+15.0) | 40.0 (+5.0) | 40.0 (+0.0) | 20.0 (+0.0) | 42.5 (+5.0) |"
        in text
    )


def test_the_mean_of_classes_that_no_split_has_together_is_a_dash() -> None:
    """Each of two splits lacks another class, so no unit has a mean of the classes that are not shown."""
    units = [(loss, unit) for loss in ("fl", "afl") for unit in ("split0-s0", "split1-s0")]
    nan = float("nan")
    found = pd.DataFrame(
        [[0.1, 0.1, 0.5, 0.5], [0.3, nan, 0.3, nan], [nan, 0.4, nan, 0.4]],
        index=pd.MultiIndex.from_tuples([("a", "r"), ("b", "c"), ("c", "f")], names=["name", "group"]),
        columns=pd.MultiIndex.from_tuples(units, names=["loss", "unit"]),
    )
    text = answers.classes_text(questions.most_moved(found, "fl", shown=1), "fl")
    assert text.splitlines()[-2:] == [
        "| a | r | 10.0 ± 0.0 | 50.0 ± 0.0 (**+40.0 ± 0.0**) |",
        "| mean of the other 2 |  | — | — |",
    ]


def test_undefined_figures_are_dashes() -> None:
    """Frequent classes without gradient, and shares and metrics of a group without objects, have no figure."""
    columns = pd.MultiIndex.from_product([["r"], ["fl", "afl"]])
    share = pd.DataFrame(
        [[math.nan, math.nan], [10.0, math.nan], [math.nan, 20.0], [10.0, 12.5]], columns=columns
    )
    text = answers.recognition_text(share, share)
    assert "nan" not in text and "12.5 (+2.5)" in text
    fit = share.set_axis(pd.MultiIndex.from_product([["validation"], ["fl", "afl"]]), axis=1)
    assert [line.split("|")[2:4] for line in answers.fit_text(fit, "AP_r").splitlines()[2:]] == [
        [" — ", " — "], [" 10.0 ", " — "], [" — ", " 20.0 "], [" 10.0 ", " 12.5 (+2.5) "],
    ]  # fmt: skip
    index = pd.MultiIndex.from_tuples([("fcos", "afl", 0)], names=["detector", "loss", "part"])
    ratios = pd.DataFrame({"r": [0.6], "c": [0.3], "f": [math.nan], "step": [50.0]}, index=index)
    assert "| 0.6 / 0.3 / — |" in answers.mechanism_text(ratios, [0])
