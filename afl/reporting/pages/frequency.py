"""AP of classes against their number of training instances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from afl.evaluation.groups import mean_defined
from afl.reporting.names import GROUPS, detector_name, percent
from afl.reporting.pages.chart import Chart, extent, paint
from afl.reporting.pages.material import Material, styles
from afl.reporting.pages.page import Section
from afl.reporting.table import Table
from afl.tracking import Record

MOST_DOTS = 150  # more classes than this are shown as means over classes of similar frequency
BINS = 10


def frequency_section(material: Material) -> Section | None:
    """AP by frequency group, and of each class against its training instances."""
    found = material.main
    if found.spec.baseline is None:
        return None
    by_group = [own for dataset in found.spec.datasets if (own := _by_group(material, found, dataset))]
    by_class = {
        dataset: shown
        for dataset in found.spec.datasets
        if dataset in material.instances and (shown := _by_class(material, found, dataset))
    }
    if not by_group and not by_class:
        return None
    style = styles(found.spec)
    content = {
        "baseline": found.spec.baseline,
        "losses": [(style[loss], loss) for loss in found.spec.losses if loss != found.spec.baseline],
        "by_group": by_group,
        "by_class": by_class,
    }
    return Section(
        "frequency", "Rare, common and frequent classes", "Frequency", "frequency.html.j2", content
    )


def _by_group(material: Material, found: Table, dataset: str) -> list[Chart]:
    """A chart for each detector: difference of each loss to the baseline by frequency group."""
    style, charts, baseline = styles(found.spec), [], found.spec.baseline
    for detector in found.spec.detectors:
        series = {}
        for loss in found.spec.losses:
            base, values = map(_group_values, material.pairs(found, dataset, detector, loss))
            pairs = list(zip(values, base, strict=True))
            points = [None if None in pair else 100 * (pair[0] - pair[1]) for pair in pairs]
            if loss == baseline or points == [None] * len(points):
                continue
            notes = [
                f"{loss}, {name}: {percent(value)} against {percent(other)}"
                for name, (value, other) in zip(GROUPS.values(), pairs, strict=True)
            ]
            series[loss] = (points, notes)
        if not series:
            continue
        chart = Chart(detector_name(detector), y_label=f"points of AP over {baseline}")
        for loss in sorted(series, key=lambda one: one == "afl"):
            chart.points((0, 1, 2), series[loss][0], style[loss], series[loss][1], "dot", "-")
        reached = [point for points, _ in series.values() for point in points if point is not None]
        chart.span("y", *extent([*reached, 0.0, 1.0, -1.0]))
        chart.axis.axhline(0, color=paint("soft"), linewidth=1, zorder=1)
        chart.ticks("x", (0, 1, 2), list(GROUPS.values()))
        chart.axis.set_xlim(-0.25, 2.25)
        charts.append(chart)
    return charts


def _group_values(records: Sequence[Record]) -> list[float | None]:
    """Means over seeds of AP_r, AP_c and AP_f."""
    return [mean_defined([record.metrics.get(f"AP_{group}") for record in records]) for group in GROUPS]


def _by_class(material: Material, found: Table, dataset: str) -> dict[str, list[Chart]]:
    """For each loss a chart for each detector: AP of every class with the baseline and with the loss."""
    counts = material.instances[dataset]
    arms = sorted((loss for loss in found.spec.losses if loss != found.spec.baseline), key="afl".__ne__)
    shown = {}
    for loss in arms:
        charts = []
        for detector in found.spec.detectors:
            base, other = material.pairs(found, dataset, detector, loss)
            if base and (chart := _classes(detector_name(detector), base, other, counts)):
                charts.append(chart)
        if charts:
            shown[loss] = charts
    return shown


def _classes(
    title: str, base: Sequence[Record], other: Sequence[Record], counts: Mapping[str, int]
) -> Chart | None:
    points = []  # (training instances, AP of the baseline, AP of the loss, group, class)
    for name, count in counts.items():
        before, after = (
            mean_defined([record.per_class.get(name) for record in runs]) for runs in (base, other)
        )
        if before is not None and after is not None and count > 0:
            points.append((count, 100 * before, 100 * after, base[0].groups.get(name, "f"), name))
    if not points:
        return None
    chart = Chart(title, "training instances", "AP")
    chart.span("x", min(p[0] for p in points) * 0.8, max(p[0] for p in points) * 1.25, log=True)
    chart.span("y", 0, 1.06 * max(max(p[1], p[2]) for p in points) or 1.0)
    if len(points) > MOST_DOTS:
        _draw_means(chart, points, base[0].loss, other[0].loss)
        return chart
    chart.axis.vlines(
        *zip(*(p[:3] for p in points), strict=True), color=paint("soft"), alpha=0.5, linewidth=1.2
    )
    for group in GROUPS:
        own = [p for p in points if p[3] == group]
        notes = [
            f"{name}, {count} instances: {before:.1f} to {after:.1f} ({percent((after - before) / 100, True)})"
            for count, before, after, _, name in own
        ]
        instances, with_baseline, with_loss = ([p[i] for p in own] for i in range(3))
        chart.points(instances, with_baseline, "s0", notes, "ring")
        chart.points(instances, with_loss, group, notes, "dot")
    return chart


def _draw_means(chart: Chart, points: Sequence[tuple], baseline: str, loss: str) -> None:
    """Means over classes of similar frequency, the same number of classes in each bin but the last."""
    size = -(-len(points) // BINS)
    ordered = sorted(points)
    bins = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    at = [float(np.exp(np.mean(np.log([p[0] for p in part])))) for part in bins]
    for name, place, style in ((baseline, 1, "s0"), (loss, 2, "s1")):
        values = [float(np.mean([p[place] for p in part])) for part in bins]
        notes = [
            f"{name}, {len(part)} classes: {value:.1f}" for part, value in zip(bins, values, strict=True)
        ]
        chart.points(at, values, style, notes, "dot", "-")
