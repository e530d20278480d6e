"""The gradient: its share by frequency group, its course over training, and AFL's gate."""

from __future__ import annotations

from collections.abc import Sequence

from afl.reporting.names import GROUPS, detector_name
from afl.reporting.pages.chart import Chart, stacked_bars
from afl.reporting.pages.material import Material, styles
from afl.reporting.pages.page import Section
from afl.reporting.table import Table
from afl.tracking import Record, mass_curves

MASS_LOSSES = ("fl", "cbl", "cbfl", "afl")  # further losses would cover these lines
PALE = 0.45  # opacity of negatives


def dynamics_section(material: Material) -> Section | None:
    """From the gradient dynamics of the records."""
    found, style = material.main, styles(material.main.spec)
    shares = [own for dataset in found.spec.datasets if (own := _shares(material, found, dataset))]
    if not shares:
        return None
    content: dict[str, object] = {
        "shares": shares,
        "signs": [
            (f"{group}{pale}", f"{sign}s, {name}")
            for sign, pale in (("positive", ""), ("negative", " pale"))
            for group, name in GROUPS.items()
        ],
        "courses": {
            dataset: courses
            for dataset in found.spec.datasets
            if (courses := _courses(material, found, dataset))
        },
        "losses": [(style[loss], loss) for loss in MASS_LOSSES if loss in style],
        "gates": [own for dataset in found.spec.datasets if (own := _gates(material, found, dataset))],
    }
    return Section("dynamics", "Gradients by frequency group", "Gradients", "dynamics.html.j2", content)


def _shares(material: Material, found: Table, dataset: str) -> list[Chart]:
    charts = []
    for detector in found.spec.detectors:
        rows = []
        for loss in found.spec.losses:
            masses = _masses(material.records(found, dataset, detector, loss))
            sums = {
                (sign, group): sum(masses.get(f"{sign}/{group}", ()))
                for sign in ("positive", "negative")
                for group in GROUPS
            }
            total = sum(sums.values())
            if total > 0:
                parts = [
                    (
                        group,
                        1.0 if sign == "positive" else PALE,
                        f"{loss}, {sign}s, {GROUPS[group]}: {100 * mass / total:.1f} %",
                        mass / total,
                    )
                    for (sign, group), mass in sums.items()
                ]
                rows.append((loss, parts))
        if rows:
            charts.append(stacked_bars(detector_name(detector), rows))
    return charts


def _masses(records: Sequence[Record]) -> dict[str, list[float]]:
    """The mass curves of the first record that has them."""
    return next((mass_curves(own.gradient_dynamics) for own in records if own.gradient_dynamics), {})


def _courses(material: Material, found: Table, dataset: str) -> dict[str, list[Chart]]:
    """For each detector a chart for each sign and group, a line for each of ``MASS_LOSSES``."""
    style, shown = styles(found.spec), {}
    for detector in found.spec.detectors:
        masses = {
            loss: own
            for loss in MASS_LOSSES
            if loss in style and (own := _masses(material.records(found, dataset, detector, loss)))
        }
        charts = []
        for sign in ("positive", "negative"):
            for group, name in GROUPS.items():
                key = f"{sign}/{group}"
                values = [value for own in masses.values() for value in own.get(key, ()) if value > 0]
                if not values:
                    continue
                chart = Chart(f"{sign}s, {name}", "training, %", "Σ |∂L/∂z|", height=190)
                for loss, own in masses.items():
                    y = own.get(key, [])
                    notes = [f"{loss}: {value:.3g}" for value in y]
                    shown_y = [value if value > 0 else None for value in y]
                    chart.points(_progress(y), shown_y, style[loss], notes, "dot", "-")
                chart.span("x", 0, 100)
                chart.span("y", min(values) * 0.8, max(values) * 1.25, log=True)
                charts.append(chart)
        if charts:
            shown[detector_name(detector)] = charts
    return shown


def _gates(material: Material, found: Table, dataset: str) -> list[Chart]:
    charts = []
    for detector in found.spec.detectors:
        records = [r for r in material.records(found, dataset, detector, "afl") if r.gradient_dynamics]
        curves = records[0].gradient_dynamics["curves"] if records else {}
        chart = Chart(detector_name(detector), "training, %", height=190)
        drawn: list[float] = []
        for figure, label, color in (("ghat", "ĝ", "s0"), ("kappa", "κ", "s1")):
            for name, values in curves.items():
                if name.endswith(f"/adaptive_gradient/{figure}"):
                    notes = [
                        f"{label} of {name.split('/')[1].replace('_', ' ')}: {value}" for value in values
                    ]
                    chart.points(_progress(values), values, color, notes, "dot", "-")
                    drawn += values
        if drawn:
            chart.span("x", 0, 100)
            chart.span("y", 0, 1.02 * max(1.0, *drawn))
            charts.append(chart)
    return charts


def _progress(values: Sequence[float]) -> list[float]:
    """Middle of each part of the training, in percent."""
    return [100 * (k + 0.5) / len(values) for k in range(len(values))]
