"""Figures of the losses: gradients and AFL's gate, drawn from the code that trains."""

from __future__ import annotations

import textwrap

import torch
from matplotlib.figure import Figure

from afl.losses.gradient import focal_gradient, gate
from afl.reporting.figures.curves import LOGITS, family_curves
from afl.reporting.figures.style import (
    BLACK,
    BLUE,
    GREEN,
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
                label = textwrap.fill(curve.name, 30)
                axis.plot(P, getattr(curve, name), color=color, linestyle=line, label=label, zorder=order)
            top = max(getattr(curve, name).max() for curve in curves)
            axis.set(title=side, xlabel="p", xlim=(0, 1), ylim=(0, 1.05 * top), xticks=(0, 0.5, 1))
        axes[0].set_ylabel("|∂L/∂z|")
        figure.suptitle(f"Gradient of one element ({RECONSTRUCTION})")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


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
