"""Learning curves of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from afl.reporting.names import detector_name
from afl.reporting.pages.chart import Chart, extent
from afl.reporting.pages.material import Material, styles
from afl.reporting.pages.page import Section

# Figures of ``metrics.jsonl`` that are drawn if a run has them at more than one step.
CURVES = {"loss/total": "total loss", "gradient_norm": "gradient norm", "val/AP": "AP on validation"}
MOST_POINTS = 150


def curves_section(material: Material) -> Section | None:
    """The curves that the first seed of each cell logged during training."""
    found, style = material.main, styles(material.main.spec)
    shown: dict[str, list[Chart]] = {}
    used: set[str] = set()
    for name, label in CURVES.items():
        for dataset in found.spec.datasets:
            for detector in found.spec.detectors:
                series = {}
                for loss in found.spec.losses:
                    for record in material.records(found, dataset, detector, loss)[:1]:
                        x, y = _thinned(material.curves.get(record.key, ()), name)
                        if len(x) > 1:
                            series[loss] = (x, y)
                if series:
                    title = detector_name(detector) + (f", {dataset}" if len(found.spec.datasets) > 1 else "")
                    shown.setdefault(label, []).append(
                        _curves(title, series, style, label, name == "loss/total")
                    )
                    used |= series.keys()
    if not shown:
        return None
    losses = [(style[loss], loss) for loss in found.spec.losses if loss in used]
    return Section(
        "curves", "Learning curves", "Curves", "curves.html.j2", {"curves": shown, "losses": losses}
    )


def _thinned(lines: Sequence[Mapping], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one figure; of very many, every n-th."""
    points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    points = points[:: -(-len(points) // MOST_POINTS) or 1]
    return [p[0] for p in points], [p[1] for p in points]


def _curves(
    title: str,
    series: Mapping[str, tuple[list[float], list[float]]],
    style: Mapping[str, str],
    label: str,
    log: bool,
) -> Chart:
    values = [value for _, y in series.values() for value in y]
    log = log and min(values) > 0
    low, high = (min(values) * 0.9, max(values) * 1.1) if log else extent([*values, 0.0])
    chart = Chart(title, "step", label)
    for loss, (x, y) in series.items():
        chart.points(x, y, style[loss], loss, line="-")
    chart.span("x", 0, max(max(x) for x, _ in series.values()))
    chart.span("y", low if log else max(low, 0.0), high, log)
    return chart
