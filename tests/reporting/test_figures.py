"""Figures: curves compared with numerical derivatives and closed forms, files, and the command that writes them."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import partial

import matplotlib
import numpy as np
import pytest
import torch

from afl.losses import (
    AdaptiveGradient,
    ClassificationLoss,
    ClassWeights,
    GradientBalance,
    MapLoss,
    OnlineHardExampleMining,
)
from afl.reporting.figures import curves as computed
from afl.reporting.figures.curves import LOGITS, Curve, configured_curves, family_curves, map_curves
from afl.reporting.figures.losses import draw_all, draw_class_weights, draw_gate, draw_gradients_in_a_map
from afl.reporting.figures.mass import draw_gradient_mass
from afl.reporting.figures.style import save
from afl.tracking import write_record
from scripts.report import main
from scripts.reports import figures as report

Z = LOGITS.numpy()
P = 1 / (1 + np.exp(-Z))


def slope(loss, z: np.ndarray = Z) -> np.ndarray:
    """|dL/dz| by central differences."""
    return np.abs(loss(z + 1e-5) - loss(z - 1e-5)) / 2e-5


def stated(y: int, gamma: float, w: float):
    """w^y g^gamma BCE(z, y) as a function of z."""

    def loss(z):
        g = 1 / (1 + np.exp(z if y else -z))
        return (w if y else 1.0) * g**gamma * -np.log(1 - g)

    return loss


STATED = {
    "CE": (0.0, 1.0, 0.0),
    "FL, γ = 2": (2.0, 1.0, 0.0),
    "CBFL, w = 2": (2.0, 2.0, 0.0),
    "CBFL, w = 5 (AFL, κ = 0)": (2.0, 5.0, 0.0),
    "AFL, w = 5, κ = ¼": (2.0, 5.0, 0.25),
    "AFL, w = 5, κ = ½": (2.0, 5.0, 0.5),
    "AFL, w = 5, κ = 1": (2.0, 5.0, 1.0),
}


def test_curves_of_the_family_equal_numerical_derivatives_of_the_stated_losses():
    curves = family_curves()
    assert [curve.names for curve in curves] == [(name,) for name in STATED]
    for curve in curves:
        gamma, w, kappa = STATED[curve.names[0]]
        for y, drawn in ((1, curve.positive), (0, curve.negative)):
            u = slope(stated(y, gamma, w))
            np.testing.assert_allclose(drawn, u / (1 + kappa * u), rtol=1e-6, atol=1e-9)


def chain(gamma: float = 2.0, **links):
    return partial(ClassificationLoss, gamma=gamma, chain=links)


def test_curves_of_map_losses_equal_numerical_derivatives_and_equal_curves_are_merged():
    losses = {
        "fl": chain(),
        "bce": chain(gamma=0.0),
        "cbfl": chain(weights=ClassWeights),
        "afl": chain(weights=ClassWeights, gate=AdaptiveGradient),
        "balanced": chain(weights=ClassWeights, balance=GradientBalance, gate=AdaptiveGradient),
    }
    curves, without = configured_curves(losses)
    assert not without and [curve.names for curve in curves] == [
        ("fl",),
        ("bce",),
        ("cbfl",),
        ("afl", "balanced"),
    ]
    for curve, key in zip(
        curves, ("FL, γ = 2", "CE", "CBFL, w = 5 (AFL, κ = 0)", "AFL, w = 5, κ = 1"), strict=True
    ):
        gamma, w, kappa = STATED[key]
        for y, drawn in ((1, curve.positive), (0, curve.negative)):
            u = slope(stated(y, gamma, w))
            np.testing.assert_allclose(drawn, u / (1 + kappa * u), rtol=1e-4, atol=1e-7)


def test_every_curve_has_a_panel_with_a_reference_and_all_names_are_written():
    curves = [Curve(("fl", "efl"), P, 1 - P), Curve(("bce",), P**2, 1 - P**2)]
    figure = draw_all(curves)
    for axis, curve, title in zip(figure.axes, curves, ("fl *", "bce"), strict=False):
        assert axis.get_title() == title
        drawn = [np.asarray(line.get_ydata()) for line in axis.lines]
        for own, expected in zip(drawn, (P, curve.positive, 1 - P, curve.negative), strict=True):
            np.testing.assert_allclose(own, expected)
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "* fl: also efl."


class Largest(MapLoss):
    """A loss of the largest logit, which has no curve because it depends on the other logits of the map."""

    def compute(self, logits, target, normalizer, localization):
        return logits.max() / normalizer


class Undefined(Largest):
    def compute(self, logits, target, normalizer, localization):
        raise ValueError("no such thing here")


def test_a_loss_without_a_curve_is_named_with_the_reason():
    assert map_curves(Largest) is None
    curves, without = configured_curves({"largest": Largest, "undefined": Undefined})
    assert (
        curves == [] and without["undefined"] == "no such thing here" and "depends on" in without["largest"]
    )


def test_gate_lines_equal_the_formula():
    left, right = draw_gate().axes
    for line, (kappa, w) in zip(left.lines, ((k, w) for k in (1, 0.5, 0.25, 0) for w in (1, 5)), strict=True):
        np.testing.assert_allclose(line.get_xdata(), P)
        np.testing.assert_allclose(line.get_ydata(), 1 / (1 + kappa * slope(stated(1, 2.0, w))), rtol=1e-6)
    for line, kappa in zip(right.lines, (1, 0.5, 0.25, 0), strict=True):
        u = np.asarray(line.get_xdata())
        np.testing.assert_allclose(line.get_ydata(), u / (1 + kappa * u))


def test_weight_lines_equal_cuis_effective_number():
    left, right = draw_class_weights([2, 1000, 40, 100], "four", cap=7.0, beta=0.99).axes
    *lines, cap = left.lines
    for line, beta in zip(lines, (0.9, 0.99, 0.999, 0.9999), strict=True):
        n = np.asarray(line.get_xdata())
        assert (n[0], n[-1]) == (1, 10_000)
        np.testing.assert_allclose(line.get_ydata(), (1 - beta ** n[-1]) / (1 - beta**n), rtol=1e-6)
    assert set(cap.get_ydata()) == {7.0}
    head, instances, one = right.lines
    n = np.array([2.0, 40, 100, 1000])
    np.testing.assert_allclose(head.get_xdata(), n)
    np.testing.assert_allclose(head.get_ydata(), np.minimum((1 - 0.99**1000) / (1 - 0.99**n), 7.0), rtol=1e-6)
    w = np.asarray(instances.get_ydata())
    # Proportional to 1 / effective number below the cap, and on average 1 over instances.
    assert w[0] == 7.0 and np.average(w, weights=n) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(w[1:] / w[3], (1 - 0.99**1000) / (1 - 0.99 ** n[1:]), rtol=1e-5)


def test_drawn_weights_equal_those_of_the_losses_on_the_benchmark():
    """For 30 classes in 560 images with six objects each; the settings are those of the files of the losses."""
    counts = report.benchmark_counts()
    assert len(counts) == 30 and sum(counts) == 560 * 6 and counts[0] > 1000 and counts[-1] == 2
    info = replace(
        computed.EXAMPLE_MAP,
        num_classes=30,
        instances_per_class=torch.tensor(counts).float(),
        images_per_class=torch.tensor(counts).float(),
    )
    losses = report.configured_losses()
    _, right = draw_class_weights(counts, "Shapes").axes
    for line, arms in zip(right.lines, (("cbl", "cbfl"), ("afl", "cbfl_instances")), strict=False):
        for arm in arms:
            weight = losses[arm](info).chain["class_weights"].weight
            np.testing.assert_allclose(line.get_ydata()[::-1], weight.numpy(), rtol=1e-6)


def test_lines_of_a_map_loss_are_means_over_elements():
    """OHEM keeps the 128 locations of the largest cross-entropy, found by sorting."""
    p, q = (torch.sigmoid(z).numpy() for z in (computed.MAP_POSITIVES, computed.MAP_NEGATIVES))
    loss = np.concatenate([-np.log(p), -np.log1p(-q)])
    size = np.where(loss >= np.sort(loss)[-128], np.concatenate([1 - p, q]), 0.0)
    mined = partial(ClassificationLoss, gamma=0.0, alpha=-1.0, chain={"ohem": OnlineHardExampleMining})
    for drawn, own, values in zip(
        computed.gradients_in_a_map(mined), (p, q), (size[: len(p)], size[len(p) :]), strict=True
    ):
        expected = [values[(own >= k / 20) & (own < (k + 1) / 20)].mean() for k in range(20)]
        np.testing.assert_allclose(drawn, expected, rtol=1e-6, atol=1e-12)
        assert 0 < (np.asarray(expected) > 0).sum() < 20
    figure = draw_gradients_in_a_map({"ohem": mined, "ghm": mined, "again": mined})
    assert [axis.get_title() for axis in figure.axes] == ["ohem", "ghm", "again", ""]


def dynamics(factor: float) -> dict:
    curves = {
        f"gradient/{name}/{sign}/{group}/sum": [factor * size, 2 * factor * size, 0.0]
        for name in ("top_left", "bottom_right")
        for sign, size in (("positive", 1.0), ("negative", 10.0))
        for group in "rf"
    }
    return {"steps": [10, 20, 30], "share": {}, "curves": curves | {"gradient_norm": [1.0, 1.0, 1.0]}}


def test_gradient_mass_is_the_sum_over_maps_and_the_mean_over_seeds(record):
    records = [
        record("cornernet", "fl", seed, gradient_dynamics=dynamics(factor))
        for seed, factor in enumerate((1.0, 3.0))
    ]
    records += [record("cornernet", "afl", 0, gradient_dynamics=dynamics(5.0)), record("fcos", "fl", 0)]
    records += [
        record("cornernet", "ohem", 0, gradient_dynamics=dynamics(9.0)),
        record("cornernet", "cbl", 0, "failed"),
    ]
    pretraining = record("cornernet", "fl", dataset="shapes_pretraining", gradient_dynamics=dynamics(7.0))
    drawn = draw_gradient_mass([*records, pretraining])
    assert list(drawn) == ["shapes-cornernet"]
    (legend,) = drawn["shapes-cornernet"].legends
    assert [text.get_text() for text in legend.get_texts()] == ["FL, 2 seeds", "AFL, 1 seed"]
    rare, frequent, *negatives = drawn["shapes-cornernet"].axes
    assert [axis.get_title() for axis in (rare, frequent)] == ["rare", "frequent"]
    for axes, size in (((rare, frequent), 1.0), (negatives, 10.0)):
        for axis in axes:
            assert [line.get_label() for line in axis.lines] == ["FL", "AFL"]
            for line, factor in zip(axis.lines, (2.0, 5.0), strict=True):
                np.testing.assert_allclose(line.get_xdata(), [100 / 6, 50, 500 / 6])
                np.testing.assert_allclose(line.get_ydata(), [2 * factor * size, 4 * factor * size, np.nan])
    assert draw_gradient_mass(records[-2:]) == {}


def test_the_command_writes_every_figure_as_png_and_pdf_without_a_date(tmp_path, record, capsys):
    kept = record("fcos", "afl", gradient_dynamics=dynamics(1.0))
    write_record(tmp_path / "shapes" / "records" / "fcos.json", kept)
    # The same detector and loss in another table is a different run.
    write_record(tmp_path / "ablation" / "records" / "fcos.json", replace(kept, steps=7))
    main(["figures", f"results={tmp_path}"])
    said = capsys.readouterr().out
    assert "no gradient_mass" not in said and "no curve of ghm: " in said and "see gradient_in_a_map" in said
    written = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    names = {"gradient", "gradient_all_losses", "gradient_in_a_map", "gate", "class_weights"}
    names.add("gradient_mass-shapes-fcos")
    assert set(written) == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    for name, content in written.items():
        if name.endswith(".png"):
            assert content[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">I", content[16:20])[0] in (
                1050,
                2148,
            )
        else:
            assert content[:5] == b"%PDF-" and b"CreationDate" not in content


def test_the_command_names_missing_figures_and_those_of_a_reconstruction(tmp_path, monkeypatch, capsys):
    drawn = {}
    monkeypatch.setattr(
        report, "save", lambda figure, folder, name: drawn.setdefault(name, figure) and [folder / name]
    )
    monkeypatch.setattr(report, "configured_curves", lambda losses: ([], {"mine": "it has none"}))
    main(["figures", f"results={tmp_path}"])
    said = capsys.readouterr().out
    assert "no curve of mine: it has none" in said and "no gradient_mass: none of 0 records" in said
    assert set(drawn) == {"gradient", "gradient_all_losses", "gate", "class_weights"}
    for name, figure in drawn.items():
        assert "reconstruction" in figure.get_suptitle(), name


def test_the_figure_of_gradient_mass_names_the_reconstruction(record):
    for loss in ("afl", "fl"):
        (figure,) = draw_gradient_mass([record("fcos", loss, gradient_dynamics=dynamics(1.0))]).values()
        assert ("reconstruction" in figure.get_suptitle()) == (loss == "afl")


def test_a_figure_is_reproducible_with_any_matplotlib_style(tmp_path):
    counts = [1000, 40, 2]
    plain = [path.read_bytes() for path in save(draw_class_weights(counts, "x"), tmp_path, "plain")]
    with matplotlib.rc_context({"font.size": 20, "savefig.dpi": 50, "axes.facecolor": "black"}):
        styled = [path.read_bytes() for path in save(draw_class_weights(counts, "x"), tmp_path, "styled")]
    assert plain == styled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure"], "Did you mean figures"),
        ([], "Which report"),
        (["figures", "record=x"], "no option 'record'. Did you mean records"),
        (["figures", "records=x", "runs=y"], "not from both"),
    ],
)
def test_wrong_arguments_give_one_line(arguments, message):
    with pytest.raises((SystemExit, ValueError), match=message):
        main(arguments)


def test_missing_folders_are_named(tmp_path):
    for argument in ("records", "runs"):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            main(["figures", f"{argument}={tmp_path}/nowhere", f"results={tmp_path}"])
