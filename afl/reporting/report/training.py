"""Learning curves, and where the gradient goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from afl.reporting.names import GROUPS, detector_name
from afl.reporting.report.material import Material, styles
from afl.reporting.report.page import Section, choices
from afl.reporting.report.svg import Axis, Series, chart, extent, legend, stacked_bars
from afl.reporting.table import Table
from afl.tracking import Record, mass_curves

# Figures of ``metrics.jsonl`` that are drawn, where a run has them at more than one step.
CURVES = {"loss/total": "total loss", "gradient_norm": "gradient norm", "val/AP": "AP on validation"}
MOST_POINTS = 150
# The other losses would bury these lines.
MASS_LOSSES = ("fl", "cbl", "cbfl", "afl")


def curves_section(material: Material) -> Section | None:
    """What the runs logged while they trained; the first seed of each cell."""
    found, style = material.main, styles(material.main.spec)
    shown = {}
    used: dict[str, None] = {}
    for name, label in CURVES.items():
        drawings = []
        for dataset in found.spec.datasets:
            for detector in found.spec.detectors:
                series = []
                for loss in found.spec.losses:
                    for record in material.records(found, dataset, detector, loss)[:1]:
                        x, y = _thinned(material.curves.get(record.key, ()), name)
                        if len(x) > 1:
                            series.append(Series(loss, style[loss], x, y))
                            used[loss] = None
                if series:
                    title = detector_name(detector) + (f", {dataset}" if len(found.spec.datasets) > 1 else "")
                    drawings.append(_curves(title, series, label, log=name == "loss/total"))
        if drawings:
            shown[label] = f'<div class="grid">{"".join(drawings)}</div>'
    if not shown:
        return None
    keys = [(style[loss], loss) for loss in found.spec.losses if loss in used]
    body = (
        '<p class="soft">As logged in <code>metrics.jsonl</code>, first seed. Losses have different scales: compare the '
        "courses of total losses, not their heights.</p>" + choices("curves", "Curve", shown) + legend(keys)
    )
    return Section("curves", "Learning curves", "Curves", body)


def _thinned(lines: Sequence[Mapping], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one figure; of very many, every n-th."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    points = points[:: -(-len(points) // MOST_POINTS) or 1]
    return [p[0] for p in points], [p[1] for p in points]


def _curves(title: str, series: Sequence[Series], label: str, log: bool) -> str:
    values = [v for one in series for v in one.y]
    log = log and min(values) > 0
    low, high = (min(values) * 0.9, max(values) * 1.1) if log else extent([*values, 0.0])
    steps = max(max(one.x) for one in series)
    return chart(
        title, series, Axis(0, steps, "step"), Axis(low if log else max(low, 0.0), high, label, log=log)
    )


def dynamics_section(material: Material) -> Section | None:
    """Share of the gradient by frequency group, its course, and AFL's gate."""
    found = material.main
    shares = [html for dataset in found.spec.datasets if (html := _shares(material, found, dataset))]
    courses = [html for dataset in found.spec.datasets if (html := _courses(material, found, dataset))]
    gates = [html for dataset in found.spec.datasets if (html := _gates(material, found, dataset))]
    if not shares:
        return None
    keys = [(f"{group} pale" if sign else group, text) for sign in (0, 1) for group, text in _parts(sign)]
    body = (
        "<p class='soft'>|∂L/∂z| of every element that takes part in a classification loss, before its normaliser, summed over "
        "the steps that were logged.</p>"
        f"<h3>Whose gradient it is</h3>{''.join(shares)}{_share_legend(keys)}"
    )
    if courses:
        style = styles(found.spec)
        own = [(style[loss], loss) for loss in MASS_LOSSES if loss in style and loss in found.spec.losses]
        body += f"<h3>Over the training</h3>{''.join(courses)}{legend(own)}"
    if gates:
        body += (
            "<h3>The gate of AFL</h3><p class='soft'>ĝ is the running mean of |p − y| over positives, κ the strength of the "
            f"gate that follows from it: from 1 (closed most) to 0 (open).</p>{''.join(gates)}"
            + legend([("s1", "κ"), ("s0", "ĝ")])
        )
    return Section("dynamics", "Where the gradient goes", "Gradients", body)


def _parts(sign: int) -> list[tuple[str, str]]:
    word = ("positives", "negatives")[sign]
    return [(group, f"{word}, {name}") for group, name in GROUPS.items()]


def _share_legend(keys: Sequence[tuple[str, str]]) -> str:
    spans = "".join(
        f'<span><i class="{style.split()[0]} key"{_pale(style)}></i>{escape(text)}</span>'
        for style, text in keys
    )
    return f'<p class="legend">{spans}</p>'


def _pale(style: str) -> str:
    return ' style="opacity:.45"' if "pale" in style else ""


def _shares(material: Material, found: Table, dataset: str) -> str:
    drawings = []
    for detector in found.spec.detectors:
        rows = []
        for loss in found.spec.losses:
            masses = _masses(material.records(found, dataset, detector, loss))
            total = sum(sum(values) for key, values in masses.items() if key.rsplit("/")[1] in GROUPS)
            if total <= 0:
                continue
            parts = []
            for sign, word in enumerate(("positive", "negative")):
                for group, text in _parts(sign):
                    share = sum(masses.get(f"{word}/{group}", ())) / total
                    parts.append((f"{group}{' pale' * sign}", f"{loss}, {text}: {100 * share:.1f} %", share))
            rows.append((loss, parts))
        if rows:
            drawings.append(stacked_bars(detector_name(detector), rows))
    return f'<div class="grid">{"".join(drawings)}</div>' if drawings else ""


def _masses(records: Sequence[Record]) -> dict[str, list[float]]:
    """Of the first record that has them."""
    for record in records:
        if record.gradient_dynamics:
            return mass_curves(record.gradient_dynamics)
    return {}


def _courses(material: Material, found: Table, dataset: str) -> str:
    style, shown = styles(found.spec), {}
    for detector in found.spec.detectors:
        masses = {
            loss: own
            for loss in MASS_LOSSES
            if loss in found.spec.losses
            and (own := _masses(material.records(found, dataset, detector, loss)))
        }
        drawings = []
        for word in ("positive", "negative"):
            for group, name in GROUPS.items():
                key = f"{word}/{group}"
                values = [v for own in masses.values() for v in own.get(key, ()) if v > 0]
                if not values:
                    continue
                series = [
                    Series(
                        loss, style[loss], [(k + 0.5) / len(own[key]) * 100 for k in range(len(own[key]))],
                        [v if v > 0 else None for v in own[key]], dots=True,
                        notes=[f"{loss}: {v:.3g}" for v in own[key]],
                    )
                    for loss, own in masses.items()
                    if key in own
                ]  # fmt: skip
                y = Axis(min(values) * 0.8, max(values) * 1.25, "Σ |∂L/∂z|", log=True)
                drawings.append(chart(f"{word}s, {name}", series, Axis(0, 100, "training, %"), y, height=190))
        if drawings:
            shown[detector_name(detector)] = f'<div class="grid">{"".join(drawings)}</div>'
    return choices(f"course-{dataset}", "Detector", shown) if shown else ""


def _gates(material: Material, found: Table, dataset: str) -> str:
    drawings = []
    for detector in found.spec.detectors:
        records = [r for r in material.records(found, dataset, detector, "afl") if r.gradient_dynamics]
        if not records:
            continue
        curves = records[0].gradient_dynamics["curves"]
        series = []
        for figure, label, color in (("ghat", "ĝ", "s0"), ("kappa", "κ", "s1")):
            for name, values in curves.items():
                if name.endswith(f"/adaptive_gradient/{figure}"):
                    where = name.split("/")[1].replace("_", " ")
                    at = [(k + 0.5) / len(values) * 100 for k in range(len(values))]
                    notes = [f"{label} of {where}: {v}" for v in values]
                    series.append(Series(f"{label} of {where}", color, at, values, dots=True, notes=notes))
        if series:
            x, y = Axis(0, 100, "training, %"), Axis(0, 1.02)
            drawings.append(chart(detector_name(detector), series, x, y, height=190))
    return f'<div class="grid">{"".join(drawings)}</div>' if drawings else ""
