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
from afl.reporting.figures.curves import LOGITS, family_curves, map_curves
from afl.reporting.figures.losses import draw_family, draw_gate
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
    assert [curve.name for curve in curves] == list(STATED)
    for curve in curves:
        gamma, w, kappa = STATED[curve.name]
        for y, drawn in ((1, curve.positive), (0, curve.negative)):
            u = slope(stated(y, gamma, w))
            np.testing.assert_allclose(drawn, u / (1 + kappa * u), rtol=1e-6, atol=1e-9)


def chain(gamma: float = 2.0, **links):
    return partial(ClassificationLoss, gamma=gamma, chain=links)


def test_curves_of_map_losses_equal_numerical_derivatives():
    losses = {
        "FL, γ = 2": chain(),
        "CE": chain(gamma=0.0),
        "CBFL, w = 5 (AFL, κ = 0)": chain(weights=ClassWeights),
        "AFL, w = 5, κ = 1": chain(weights=ClassWeights, gate=AdaptiveGradient),
    }
    for key, loss in losses.items():
        gamma, w, kappa = STATED[key]
        for y, drawn in zip((1, 0), map_curves(loss), strict=True):
            u = slope(stated(y, gamma, w))
            np.testing.assert_allclose(drawn, u / (1 + kappa * u), rtol=1e-4, atol=1e-7)
    balanced = chain(weights=ClassWeights, balance=GradientBalance, gate=AdaptiveGradient)
    for one, other in zip(map_curves(balanced), map_curves(losses["AFL, w = 5, κ = 1"]), strict=True):
        np.testing.assert_allclose(one, other, atol=0.01)


class Largest(MapLoss):
    """A loss of the largest logit, which has no curve because it depends on the other logits of the map."""

    def compute(self, logits, target, normalizer, localization):
        return logits.max() / normalizer


def test_a_loss_of_the_whole_map_has_no_curve():
    assert map_curves(Largest) is None


def test_gate_lines_equal_the_formula():
    left, right = draw_gate().axes
    for line, (kappa, w) in zip(left.lines, ((k, w) for k in (1, 0.5, 0.25, 0) for w in (1, 5)), strict=True):
        np.testing.assert_allclose(line.get_xdata(), P)
        np.testing.assert_allclose(line.get_ydata(), 1 / (1 + kappa * slope(stated(1, 2.0, w))), rtol=1e-6)
    for line, kappa in zip(right.lines, (1, 0.5, 0.25, 0), strict=True):
        u = np.asarray(line.get_xdata())
        np.testing.assert_allclose(line.get_ydata(), u / (1 + kappa * u))


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


def test_gradient_mass_is_the_mean_over_the_variants_of_a_data_set(record):
    runs = [
        record(
            "fcos", "fl", dataset="foda", key=f"foda-fcos-fl-s0-draw{draw}-0123abcd",
            config={"dataset": {"name": "foda", "draw": draw}}, gradient_dynamics=dynamics(factor),
        )
        for draw, factor in enumerate((1.0, 3.0))
    ]  # fmt: skip
    (figure,) = draw_gradient_mass(runs).values()
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [4, 8, np.nan])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["FL, 2 units"]


def test_the_command_writes_every_figure_as_png_and_pdf_without_a_date(tmp_path, record, capsys):
    kept = record("fcos", "afl", gradient_dynamics=dynamics(1.0))
    write_record(tmp_path / "shapes" / "records" / "fcos.json", kept)
    # The same detector and loss in another table is a different run.
    write_record(tmp_path / "ablation" / "records" / "fcos.json", replace(kept, steps=7))
    main(["figures", f"results={tmp_path}"])
    said = capsys.readouterr().out
    assert "no gradient_mass" not in said
    written = {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    names = {"gradient", "gate", "gradient_mass-shapes-fcos"}
    assert set(written) == {f"{name}.{kind}" for name in names for kind in ("png", "pdf")}
    for name, content in written.items():
        if name.endswith(".png"):
            assert content[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">I", content[16:20])[0] == 1050
        else:
            assert content[:5] == b"%PDF-" and b"CreationDate" not in content


def test_the_command_names_missing_figures_and_those_of_a_reconstruction(tmp_path, monkeypatch, capsys):
    drawn = {}
    monkeypatch.setattr(
        report, "save", lambda figure, folder, name: drawn.setdefault(name, figure) and [folder / name]
    )
    main(["figures", f"results={tmp_path}"])
    assert "no gradient_mass: none of 0 records" in capsys.readouterr().out
    assert set(drawn) == {"gradient", "gate"}
    for name, figure in drawn.items():
        assert "reconstruction" in figure.get_suptitle(), name


def test_the_figure_of_gradient_mass_names_the_reconstruction(record):
    for loss in ("afl", "fl"):
        (figure,) = draw_gradient_mass([record("fcos", loss, gradient_dynamics=dynamics(1.0))]).values()
        assert ("reconstruction" in figure.get_suptitle()) == (loss == "afl")


def test_a_figure_is_reproducible_with_any_matplotlib_style(tmp_path):
    plain = [path.read_bytes() for path in save(draw_family(), tmp_path, "plain")]
    with matplotlib.rc_context({"font.size": 20, "savefig.dpi": 50, "axes.facecolor": "black"}):
        styled = [path.read_bytes() for path in save(draw_family(), tmp_path, "styled")]
    assert plain == styled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure"], "Did you mean figures"),
        ([], "Which report"),
        (["figures", "run=x"], "no option 'run'. Did you mean runs"),
    ],
)
def test_wrong_arguments_give_one_line(arguments, message):
    with pytest.raises((SystemExit, ValueError), match=message):
        main(arguments)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main(["figures", f"runs={tmp_path}/nowhere", f"results={tmp_path}"])
