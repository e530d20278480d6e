"""Figures of the losses: gradients, AFL's gate and class weights, drawn from the code that trains."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from afl.losses import MapInfo, MapLoss, class_balanced_weights
from afl.losses.gradient import focal_gradient, gate
from afl.reporting.figures.curves import (
    EXAMPLE_OVERLAP,
    LOGITS,
    MAP_BINS,
    Curve,
    family_curves,
    gradients_in_a_map,
)
from afl.reporting.figures.style import (
    BLACK,
    BLUE,
    FULL_WIDTH,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RECONSTRUCTION,
    RED,
    SKY,
    WIDTH,
    styled,
)

FAMILY_LOOKS = (
    (BLACK, "-"), (BLUE, "-"), (ORANGE, "--"), (RED, "--"), (SKY, "-."), (PURPLE, "-."), (GREEN, "-."),
)  # fmt: skip
P = torch.sigmoid(LOGITS).numpy()


def draw_family() -> Figure:
    """The gradient of the losses from cross-entropy to AFL, a positive's on the left and a negative's on the right."""
    curves = family_curves()
    rows = -(-len(curves) // 2)
    with styled():
        figure = Figure(figsize=(WIDTH, 2.05 + 0.14 * rows))
        axes = figure.subplots(1, 2)
        for axis, name, side in zip(
            axes, ("positive", "negative"), ("positive (y = 1)", "negative (y = 0)"), strict=True
        ):
            for curve, (color, line) in zip(curves, FAMILY_LOOKS, strict=True):
                # Dashed lines are drawn over solid ones, so that both are visible if they coincide.
                order = 2.0 if line == "-" else 2.1
                label = textwrap.fill(curve.names[0], 30)
                axis.plot(P, getattr(curve, name), color=color, linestyle=line, label=label, zorder=order)
            top = max(getattr(curve, name).max() for curve in curves)
            axis.set(title=side, xlabel="p", xlim=(0, 1), ylim=(0, 1.05 * top), xticks=(0, 0.5, 1))
        axes[0].set_ylabel("|∂L/∂z|")
        figure.suptitle(f"Gradient of one element ({RECONSTRUCTION})")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def draw_all(curves: Sequence[Curve]) -> Figure:
    """A panel for each curve, with the first curve as a dotted line. The axis shows square roots, which keep small gradients apart
    even if another one is large."""
    shared = [f"{curve.names[0]}: also {', '.join(curve.names[1:])}." for curve in curves if curve.names[1:]]
    names = [curve.names[0] + " *" * (len(curve.names) > 1) for curve in curves]
    title = f"One element at the first step, class weight 5, IoU {EXAMPLE_OVERLAP} ({RECONSTRUCTION})"
    figure = _panels(
        {name: (curve.positive, curve.negative) for name, curve in zip(names, curves, strict=True)},
        P, {curves[0].names[0]: (curves[0].positive, curves[0].negative)} if curves else {},
        title, "|∂L/∂z|, axis of square roots", 4, FULL_WIDTH, textwrap.fill(" ".join(["*", *shared]), 130) if shared else None,
    )  # fmt: skip
    top = max((max(curve.positive.max(), curve.negative.max()) for curve in curves), default=1.0)
    for axis in _used(figure):
        axis.set_yscale("function", functions=(_root, np.square))
        axis.set(ylim=(0, 1.05 * top), yticks=(0, 0.1, 0.5, 1, 2, 5) if top > 2 else (0, 0.1, 0.25, 0.5, 1))
        axis.yaxis.set_major_formatter("{x:g}")
    return figure


def _root(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.clip(values, 0, None))


def draw_gradients_in_a_map(losses: Mapping[str, Callable[[MapInfo], MapLoss]]) -> Figure:
    """``gradients_in_a_map`` of each loss, one panel each, with cross-entropy's. A missing part of a line is below the axis or
    has no gradient."""
    p = (np.arange(MAP_BINS) + 0.5) / MAP_BINS
    panels = {
        name: [np.where(mean > 0, mean, np.nan) for mean in gradients_in_a_map(loss)]
        for name, loss in losses.items()
    }
    figure = _panels(
        panels,
        p,
        {"cross-entropy": (1 - p, p)},
        "In one map, first step",
        "mean |∂L/∂z|",
        2,
        WIDTH,
        None,
        ".",
    )
    for axis in _used(figure):
        axis.set(yscale="log", ylim=(1e-6, 20), yticks=(1e-6, 1e-4, 1e-2, 1))
        axis.minorticks_off()
    return figure


def _panels(
    panels: Mapping[str, Sequence[np.ndarray]],
    p: np.ndarray,
    reference: Mapping[str, Sequence[np.ndarray]],
    title: str,
    label: str,
    columns: int,
    width: float,
    note: str | None,
    marker: str = "",
) -> Figure:
    """A panel for each loss: its gradients of positives and of negatives against p, and those of a reference."""
    rows = -(-len(panels) // columns)
    with styled():
        figure = Figure(figsize=(width, 0.8 + 1.1 * rows))
        axes = figure.subplots(max(rows, 1), columns, sharex=True, sharey=True, squeeze=False)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis, (name, own) in zip(axes.flat, panels.items(), strict=False):
            kinds = (("positives", BLUE, "-"), ("negatives", ORANGE, "--"))
            for i, (kind, color, line) in enumerate(kinds):
                for base, values in reference.items():
                    axis.plot(p, values[i], color="#888888", linestyle=":", linewidth=0.8, label=base)
                axis.plot(p, own[i], color=color, linestyle=line, marker=marker, markersize=2.5, label=kind)
            axis.set(xlim=(0, 1), xticks=(0, 0.5, 1))
            axis.set_title(name)
        for axis in axes[-1]:
            axis.set_xlabel("p")
        figure.supylabel(label, fontsize=8)
        figure.suptitle(title)
        handles = dict(zip(*reversed(axes.flat[0].get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, title=note)
    return figure


def _used(figure: Figure) -> list[Axes]:
    return [axis for axis in figure.axes if axis.lines]


def draw_gate() -> Figure:
    """The gate of AFL from fresh to mature: against p of a positive, and the gradient that it lets through."""
    sizes = torch.linspace(0, 6, 121, dtype=torch.float64)
    kappas = {1.0: (BLACK, "-"), 0.5: (BLUE, "--"), 0.25: (GREEN, "-."), 0.0: (ORANGE, ":")}
    with styled():
        figure = Figure(figsize=(WIDTH, 2.5))
        left, right = figure.subplots(1, 2)
        for kappa, (color, line) in kappas.items():
            for w, width in ((1.0, 0.7), (5.0, 1.5)):
                closed = gate(w * focal_gradient(-LOGITS, 2.0), kappa)
                left.plot(P, closed.numpy(), color=color, linestyle=line, linewidth=width)
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
        figure.suptitle(f"Adaptive Gradient Function, τ = 1 ({RECONSTRUCTION})")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def draw_class_weights(counts: Sequence[int], dataset: str, cap: float = 5.0, beta: float = 0.999) -> Figure:
    """Class-balanced weight against instances of a class.

    On the left by beta and without a cap, for classes of 1 to 10,000 instances of which the most frequent has weight 1. On the
    right the weights that the losses give to the classes of one data set.

    Args:
        counts: (C,) instances of that data set's classes.
        dataset: its name.
        cap, beta: those of the losses.
    """
    every = torch.unique(torch.logspace(0, 4, 200, dtype=torch.float64).round())
    lines = {
        0.9: (BLACK, "-"),
        0.99: (BLUE, "--"),
        0.999: (GREEN, "-."),
        0.9999: (ORANGE, (0, (4, 1, 1, 1, 1, 1))),
    }
    own = torch.tensor(sorted(counts), dtype=torch.float64)
    with styled():
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
        left.axhline(cap, color=GREY, linewidth=0.8, linestyle=":")
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
        right.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
        right.set(xlabel="instances n", ylim=(0, 1.1 * cap))
        right.set_title(f"{dataset}, cap {cap:g}")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=1)
        figure.suptitle(f"Class-balanced weights ({RECONSTRUCTION})")
    return figure
