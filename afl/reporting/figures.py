"""Figures of the losses, for a paper's column: 3.5 inches wide, 8 point letters, colours that colour-blind readers tell apart.

Gradient, gate and class weights are drawn from the code that trains, without a run. Gradient mass over the training needs
records. What shows AFL says that it is a reconstruction. Same input, same bytes.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from afl.evaluation import GROUP_NAMES
from afl.losses import (
    ClassificationTarget,
    MapInfo,
    MapLoss,
    adaptive_focal_loss,
    class_balanced_focal_loss,
    class_balanced_weights,
    sigmoid_focal_loss,
)
from afl.losses.gradient import focal_gradient, gate
from afl.reporting.records import one_per_cell
from afl.tracking import FINISHED, Record, mass_curves, write_bytes

WIDTH = 3.5
# Okabe and Ito's palette, black first, without its yellow, which is too light for a line.
BLACK, BLUE, ORANGE, GREEN, PURPLE, SKY, RED = (
    "#000000",
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
)
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "#D9D9D9",
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
}
RECONSTRUCTION = "AFL: a reconstruction"
MASS_LOSSES = {"fl": ("FL", BLUE, "-"), "cbl": ("CBL", ORANGE, "--"), "afl": ("AFL", GREEN, "-.")}
# Where curves are computed: sigmoid of these is 0.0003 to 0.9997.
LOGITS = torch.linspace(-8.0, 8.0, 161, dtype=torch.float64)


@dataclass(frozen=True)
class Curve:
    """A line of a figure: |dL/dz| at ``LOGITS`` for a positive and for a negative."""

    label: str
    positive: np.ndarray
    negative: np.ndarray
    color: str = BLACK
    line: str | tuple = "-"


# The map that a loss is drawn for: a frequent class and a rare one.
EXAMPLE_MAP = MapInfo(
    name="example",
    num_classes=2,
    instances_per_class=torch.tensor([1000.0, 2.0]),
    images_per_class=torch.tensor([500.0, 2.0]),
    prior=0.01,
    alpha=-1.0,
    dense_positives=True,
)

# Overlap of the box at an example's positives, for losses that take it as their target.
EXAMPLE_OVERLAP = 0.8
RARE = 1
DEPENDS = "an element's gradient depends on the others of its map"
# A whole map, for losses of which that is true: positives of all p, and negatives that are easy but for a few.
MAP_POSITIVES = torch.logit((torch.arange(40, dtype=torch.float64) + 0.5) / 40)
MAP_NEGATIVES = -4.0 + 2.0 * torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
MAP_BINS = 20


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write ``name.png`` and ``name.pdf``, without dates and versions in them; returns their paths."""
    paths = []
    for kind, metadata in (
        ("png", {"Software": None}),
        ("pdf", {"CreationDate": None, "Producer": None, "Creator": None}),
    ):
        buffer = io.BytesIO()
        with matplotlib.style.context(["default", STYLE]):
            figure.savefig(buffer, format=kind, metadata=metadata)
        paths.append(Path(folder) / f"{name}.{kind}")
        write_bytes(paths[-1], buffer.getvalue())
    return paths


# ---- |dL/dz| against p ------------------------------------------------------------------------------------------------------


def gradient_curve(loss: Callable[[Tensor, Tensor], Tensor], target: float) -> np.ndarray:
    """|dL/dz| at ``LOGITS`` of a loss of logits (K, 1) and dense targets (K, 1), by autograd."""
    z = LOGITS.clone().unsqueeze(1).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(z, torch.full_like(z, target)).sum(), z)
    return gradient.squeeze(1).abs().numpy()


def family_curves() -> list[Curve]:
    """Cross-entropy, focal loss, class-balanced focal loss at two weights and AFL from fresh to mature; alpha is off."""

    def curve(label: str, color: str, line: str, loss: Callable[[Tensor, Tensor], Tensor]) -> Curve:
        return Curve(label, gradient_curve(loss, 1.0), gradient_curve(loss, 0.0), color, line)

    def weighted(w: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda z, y: class_balanced_focal_loss(z, y, torch.tensor([w], dtype=z.dtype), alpha=-1)

    def gated(w: float, kappa: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda z, y: adaptive_focal_loss(z, y, torch.tensor([w], dtype=z.dtype), kappa=kappa, alpha=-1)

    return [
        curve("CE", BLACK, "-", lambda z, y: sigmoid_focal_loss(z, y, alpha=-1, gamma=0)),
        curve("FL, γ = 2", BLUE, "-", lambda z, y: sigmoid_focal_loss(z, y, alpha=-1)),
        curve("CBFL, w = 2", ORANGE, "--", weighted(2.0)),
        curve("CBFL, w = 5 (AFL, κ = 0)", RED, "--", weighted(5.0)),
        curve("AFL, w = 5, κ = ¼", SKY, "-.", gated(5.0, 0.25)),
        curve("AFL, w = 5, κ = ½", PURPLE, "-.", gated(5.0, 0.5)),
        curve("AFL, w = 5, κ = 1", GREEN, "-.", gated(5.0, 1.0)),
    ]


def map_curves(loss: Callable[[MapInfo], MapLoss]) -> tuple[np.ndarray, np.ndarray] | None:
    """|dL/dz| at ``LOGITS`` of a loss of maps, for the rare class of ``EXAMPLE_MAP`` and each element alone in its map.

    Args:
        loss: called with the map's facts; its state is that before the first step.

    Returns:
        Of a positive and of a negative, (K,) each; None where an element's gradient depends on what else is in the map, so
        that there is no such curve.

    Raises:
        ValueError: the loss is not defined on such a map.
    """
    module, few = loss(EXAMPLE_MAP).eval(), LOGITS[::20]
    nothing = LOGITS[:0]
    positive = torch.cat([_map_gradient(module, z, nothing) for z in LOGITS.split(1)])
    negative = torch.cat([_map_gradient(module, nothing, z) for z in LOGITS.split(1)])
    # Many, so that a method which samples negatives has to leave some out.
    together = _map_gradient(module, few, LOGITS.repeat(8))
    if not torch.allclose(together, torch.cat([positive[::20], negative.repeat(8)]), rtol=1e-4, atol=1e-6):
        return None
    return positive.numpy(), negative.numpy()


def gradients_in_a_map(loss: Callable[[MapInfo], MapLoss]) -> tuple[np.ndarray, np.ndarray]:
    """Mean |dL/dz| of the elements in each of ``MAP_BINS`` equal parts of p, in one map and before the first step.

    The map has 40 positives, four to an object, whose boxes have an IoU of p, and 4,000 negatives; box terms are worth
    1. Gradients are taken before the division by the number of positives.

    Args:
        loss: called with the map's facts.

    Returns:
        Of positives and of negatives, (MAP_BINS,) each.
    """
    module, count = loss(EXAMPLE_MAP).eval(), len(MAP_POSITIVES)
    size = count * _map_gradient(module, MAP_POSITIVES, MAP_NEGATIVES, whole=True)
    return tuple(
        _mean_by_part(torch.sigmoid(z).numpy(), own.numpy())
        for z, own in ((MAP_POSITIVES, size[:count]), (MAP_NEGATIVES, size[count:]))
    )


def _mean_by_part(p: np.ndarray, values: np.ndarray) -> np.ndarray:
    part = np.minimum((p * MAP_BINS).astype(int), MAP_BINS - 1)
    total, number = (np.bincount(part, weights, MAP_BINS) for weights in (values, None))
    return total / number


def _map_gradient(module: nn.Module, positive: Tensor, negative: Tensor, whole: bool = False) -> Tensor:
    """|dL/dz| (P + N,) of the rare class in a map of P positives and N negatives of given logits; the other class keeps
    its prior. ``whole``: as ``gradients_in_a_map`` says, instead of elements that have nothing to do with each other."""
    info = EXAMPLE_MAP
    z = torch.cat([positive, negative])
    logits = torch.full(
        (len(z), info.num_classes), float(np.log(info.prior / (1 - info.prior))), dtype=z.dtype
    )
    logits[:, RARE] = z
    logits.requires_grad_()
    index = torch.arange(len(positive))
    target = ClassificationTarget(
        num_classes=info.num_classes,
        image=torch.zeros(len(z), dtype=torch.int64),
        num_images=1,
        positive=index * info.num_classes + RARE,
        overlap=torch.sigmoid(positive) if whole else torch.full((len(index),), EXAMPLE_OVERLAP),
        object=index % (len(index) // 4) if whole else index,
        location_overlap=None if whole else torch.zeros(len(z)),
    )
    one = torch.ones((), dtype=z.dtype)
    value = module(logits, target, len(positive) * one if whole else one, localization=one)
    gradient = torch.zeros_like(logits)
    if value.requires_grad:
        (gradient,) = torch.autograd.grad(value, logits, materialize_grads=True)
    return gradient[:, RARE].abs()


def configured_curves(
    losses: Mapping[str, Callable[[MapInfo], MapLoss]],
) -> tuple[list[Curve], dict[str, str]]:
    """The curves of all losses that have one, and why the others have none; curves nearer than a line's width are one.

    Args:
        losses: factories by name, in the order in which they are drawn.
    """
    found: list[tuple[list[str], tuple[np.ndarray, np.ndarray]]] = []
    without = {}
    for name, loss in losses.items():
        try:
            pair = map_curves(loss)
        except ValueError as error:
            without[name] = str(error)
            continue
        if pair is None:
            without[name] = DEPENDS
            continue
        same = [
            names
            for names, other in found
            if all(np.allclose(a, b, atol=0.01) for a, b in zip(pair, other, strict=True))
        ]
        if same:
            same[0].append(name)
        else:
            found.append(([name], pair))
    colors, lines = (BLUE, ORANGE, GREEN, RED, BLACK, PURPLE, SKY), ("-", "--", "-.", ":")
    curves = [
        Curve(", ".join(names), *pair, colors[i % len(colors)], lines[i % len(lines)])
        for i, (names, pair) in enumerate(found)
    ]
    return curves, without


def draw_gradients(
    curves: Sequence[Curve], title: str, legend_columns: int = 2, root: bool = False
) -> Figure:
    """|dL/dz| against p, a positive's and a negative's side by side; ``root``: on an axis of square roots, which keeps
    small gradients apart where another is large."""
    p = torch.sigmoid(LOGITS).numpy()
    labels = [textwrap.fill(curve.label, 60 // legend_columns) for curve in curves]
    rows = -(-sum(1 + label.count("\n") for label in labels) // legend_columns)
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 2.05 + 0.14 * rows))
        axes = figure.subplots(1, 2)
        for axis, name, side in zip(
            axes, ("positive", "negative"), ("positive (y = 1)", "negative (y = 0)"), strict=True
        ):
            if root:
                axis.set_yscale("function", functions=(_root, np.square))
            for curve, label in zip(curves, labels, strict=True):
                # Broken lines lie on whole ones, so that those which coincide are both seen.
                order = 2.0 if curve.line == "-" else 2.1
                axis.plot(
                    p,
                    getattr(curve, name),
                    color=curve.color,
                    linestyle=curve.line,
                    label=label,
                    zorder=order,
                )
            top = max((getattr(curve, name).max() for curve in curves), default=1.0)
            axis.set(title=side, xlabel="p", xlim=(0, 1), ylim=(0, 1.05 * top), xticks=(0, 0.5, 1))
            if root:
                axis.set_yticks((0, 0.1, 0.5, 1, 2, 5) if top > 2 else (0, 0.1, 0.25, 0.5, 1))
                axis.set_ylim(0, 1.05 * top)
                axis.yaxis.set_major_formatter("{x:g}")
        axes[0].set_ylabel("|∂L/∂z|" + (", axis of square roots" if root else ""))
        figure.suptitle(title, fontsize=8)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=legend_columns)
    return figure


def _root(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.clip(values, 0, None))


def draw_gradients_in_a_map(losses: Mapping[str, Callable[[MapInfo], MapLoss]]) -> Figure:
    """``gradients_in_a_map`` of each loss, one panel each, beside cross-entropy's; where a line is missing it is below the
    axis, or nothing is learnt."""
    p = (np.arange(MAP_BINS) + 0.5) / MAP_BINS
    rows = -(-len(losses) // 2)
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 0.8 + 1.1 * rows))
        axes = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
        for axis in axes.flat[len(losses) :]:
            axis.set_axis_off()
        for axis, (name, loss) in zip(axes.flat, losses.items(), strict=False):
            kinds = (("positives", BLUE, "-", 1 - p), ("negatives", ORANGE, "--", p))
            for (label, color, line, plain), mean in zip(kinds, gradients_in_a_map(loss), strict=True):
                axis.plot(p, plain, color="#888888", linestyle=":", linewidth=0.8, label="cross-entropy")
                shown = np.where(mean > 0, mean, np.nan)
                axis.plot(p, shown, color=color, linestyle=line, marker=".", markersize=2.5, label=label)
            axis.set(
                yscale="log", xlim=(0, 1), ylim=(1e-6, 20), xticks=(0, 0.5, 1), yticks=(1e-6, 1e-4, 1e-2, 1)
            )
            axis.minorticks_off()
            axis.set_title(name)
        for axis in axes[-1]:
            axis.set_xlabel("p")
        figure.supylabel("mean |∂L/∂z|", fontsize=8)
        figure.suptitle("In one map, first step", fontsize=8)
        handles = dict(zip(*reversed(axes.flat[0].get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    return figure


# ---- gate, class weights ----------------------------------------------------------------------------------------------------


def draw_gate() -> Figure:
    """The gate of AFL from fresh to mature: against p of a positive, and as what it makes of a gradient."""
    p = torch.sigmoid(LOGITS).numpy()
    sizes = torch.linspace(0, 6, 121, dtype=torch.float64)
    kappas = {1.0: (BLACK, "-"), 0.5: (BLUE, "--"), 0.25: (GREEN, "-."), 0.0: (ORANGE, ":")}
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 2.5))
        left, right = figure.subplots(1, 2)
        for kappa, (color, line) in kappas.items():
            for w, width in ((1.0, 0.7), (5.0, 1.5)):
                closed = gate(w * focal_gradient(-LOGITS, 2.0), kappa)
                left.plot(p, closed.numpy(), color=color, linestyle=line, linewidth=width)
            right.plot(
                sizes,
                (sizes * gate(sizes, kappa)).numpy(),
                color=color,
                linestyle=line,
                label=f"κ = {kappa:g}",
            )
        left.set(
            title="gate of a positive",
            xlabel="p",
            ylabel="A",
            xlim=(0, 1),
            ylim=(0, 1.05),
            xticks=(0, 0.5, 1),
        )
        left.text(0.97, 0.04, "thin: w = 1\nthick: w = 5", fontsize=7, ha="right")
        right.set(
            title="gradient let through",
            xlabel="u",
            ylabel="A u",
            xlim=(0, 6),
            ylim=(0, 6),
            xticks=(0, 2, 4, 6),
        )
        figure.suptitle(f"Adaptive Gradient Function, τ = 1 ({RECONSTRUCTION})", fontsize=8)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def draw_class_weights(counts: Sequence[int], dataset: str, cap: float = 5.0, beta: float = 0.999) -> Figure:
    """Class-balanced weight against instances of a class.

    Left by beta and uncapped, for classes of 1 to 10,000 instances of which the most frequent has weight 1. Right as the
    arms weigh the classes of one data set.

    Args:
        counts: (C,) instances of that data set's classes.
        dataset: its name.
        cap, beta: of the arms.
    """
    every = torch.unique(torch.logspace(0, 4, 200, dtype=torch.float64).round())
    lines = {
        0.9: (BLACK, "-"),
        0.99: (BLUE, "--"),
        0.999: (GREEN, "-."),
        0.9999: (ORANGE, (0, (4, 1, 1, 1, 1, 1))),
    }
    own = torch.tensor(sorted(counts), dtype=torch.float64)
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 2.7))
        left, right = figure.subplots(1, 2)
        for value, (color, line) in lines.items():
            left.loglog(
                every,
                class_balanced_weights(every, value),
                color=color,
                linestyle=line,
                label=f"β = {value:g}",
            )
        left.axhline(cap, color="#666666", linewidth=0.8, linestyle=":")
        left.annotate(
            f"cap {cap:g}", (9500, cap), xytext=(0, 2), textcoords="offset points", ha="right", fontsize=7
        )
        left.set(xlabel="instances n", ylabel="weight w", xlim=(1, 1e4), ylim=(0.8, 2e4))
        left.set_title("by β, uncapped")
        left.legend(loc="upper right", handlelength=1.6, borderpad=0.1, labelspacing=0.3)
        for normalize, arms, meaning, color, marker in (
            ("head", "CBL, CBFL", "most frequent class 1", ORANGE, "s"),
            ("instances", "AFL", "mean 1 over instances", GREEN, "o"),
        ):
            right.semilogx(
                own,
                class_balanced_weights(own, beta, normalize, cap),
                color=color,
                marker=marker,
                markersize=3,
                markerfacecolor="none",
                linewidth=0.8,
                label=f"{arms}: β = {beta:g}, {meaning}",
            )
        right.axhline(1.0, color="#666666", linewidth=0.8, linestyle=":")
        right.set(xlabel="instances n", ylim=(0, 1.1 * cap))
        right.set_title(f"{dataset}, cap {cap:g}")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=1)
        figure.suptitle(f"Class-balanced weights ({RECONSTRUCTION})", fontsize=8)
    return figure


# ---- gradient mass over the training ----------------------------------------------------------------------------------------


def draw_gradient_mass(records: Sequence[Record]) -> dict[str, Figure]:
    """Sum of |dL/dz| over the training by frequency group, of positives and of negatives: one figure for each data set and
    detector, one line for each of FL, CBL and AFL, mean over seeds.

    Returns:
        Figures by ``DATASET-DETECTOR``; empty where no finished record of these losses has gradient dynamics.
    """
    cells: dict[str, dict[str, list[dict[str, list[float]]]]] = {}
    for record in one_per_cell(records, None).values():
        # What detectors start from is no arm of anything.
        if record.dataset.endswith("_pretraining"):
            continue
        if record.status == FINISHED and record.loss in MASS_LOSSES and record.gradient_dynamics:
            place = cells.setdefault(f"{record.dataset}-{record.detector}", {})
            place.setdefault(record.loss, []).append(mass_curves(record.gradient_dynamics))
    return {place: _mass_figure(place, losses) for place, losses in cells.items()}


def _mass_figure(place: str, losses: Mapping[str, Sequence[Mapping[str, list[float]]]]) -> Figure:
    keys = {key for runs in losses.values() for run in runs for key in run}
    groups = [group for group in GROUP_NAMES if any(key.endswith(f"/{group}") for key in keys)]
    dataset, detector = place.rsplit("-", 1)
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 3.1))
        axes = figure.subplots(2, len(groups), sharex=True, sharey="row", squeeze=False)
        gaps = False
        for row, sign in zip(axes, ("positive", "negative"), strict=True):
            for axis, group in zip(row, groups, strict=True):
                for loss, (label, color, line) in MASS_LOSSES.items():
                    runs = [
                        run[f"{sign}/{group}"] for run in losses.get(loss, ()) if f"{sign}/{group}" in run
                    ]
                    if runs:
                        progress, mean = _mean_over_runs(runs)
                        gaps = gaps or bool(np.isnan(mean).any())
                        axis.plot(
                            progress,
                            mean,
                            color=color,
                            linestyle=line,
                            marker=".",
                            markersize=2.5,
                            label=label,
                        )
                axis.set(yscale="log", xlim=(0, 100), xticks=(0, 50, 100))
            row[0].set_ylabel(f"{sign}s")
        for axis, group in zip(axes[0], groups, strict=True):
            axis.set_title(GROUP_NAMES[group])
        axes[1, len(groups) // 2].set_xlabel("training, %")
        shown = f"\n({RECONSTRUCTION})" if "afl" in losses else ""
        figure.suptitle(f"Sum of |∂L/∂z| in a step, {detector} on {dataset}{shown}", fontsize=8)
        handles = {
            label: line
            for axis in axes.flat
            for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        note = "gap: no such object in the steps recorded" if gaps else None
        seeds = {MASS_LOSSES[loss][0]: len(runs) for loss, runs in losses.items()}
        names = [f"{name}, {seeds[name]} seed{'s' * (seeds[name] > 1)}" for name in handles]
        figure.legend(
            handles.values(), names, loc="outside lower center", ncols=3, title=note, title_fontsize=7
        )
    return figure


def _mean_over_runs(runs: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Middle of each part of the training in percent, and the mean over runs there; runs of different schedules may have
    different numbers of parts, and the longest says where."""
    longest = max(len(run) for run in runs)
    middles = [(np.arange(len(run)) + 0.5) / len(run) * 100 for run in runs]
    progress = (np.arange(longest) + 0.5) / longest * 100
    values = [np.interp(progress, middle, run) for middle, run in zip(middles, runs, strict=True)]
    # A group without any gradient in a part has no place on a logarithmic axis.
    mean = np.mean(values, 0)
    return progress, np.where(mean > 0, mean, np.nan)
