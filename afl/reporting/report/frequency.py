"""AP of classes against how often they occur."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from afl.reporting.names import GROUPS, detector_name, percent
from afl.reporting.report.material import Material, styles
from afl.reporting.report.page import Section, choices
from afl.reporting.report.svg import BOTTOM, LEFT, RIGHT, TOP, Axis, Series, chart, extent, legend
from afl.reporting.table import Table
from afl.tracking import Record

# More classes than this are shown as means over classes of like frequency.
MOST_DOTS = 150
BINS = 10
GROUP_METRICS = tuple(f"AP_{group}" for group in GROUPS)


def frequency_section(material: Material) -> Section | None:
    """AP by frequency group, and of each class against its training instances."""
    found = material.main
    parts = []
    groups = [html for dataset in found.spec.datasets if (html := _by_group(material, found, dataset))]
    if groups:
        style = styles(found.spec)
        keys = [(style[loss], loss) for loss in found.spec.losses if loss != found.spec.baseline]
        parts.append("<h3>By frequency group</h3>" + "".join(groups) + legend(keys))
    classes = [
        html
        for dataset in found.spec.datasets
        if dataset in material.instances and (html := _by_class(material, found, dataset))
    ]
    if classes:
        parts.append(
            "<h3>Class by class</h3><p class='soft'>Every class at its number of training instances; the ring is the "
            f"baseline, the dot the chosen loss, in the colour of the class's group; mean over seeds.</p>{''.join(classes)}"
        )
        parts.append(
            legend([*((group, name) for group, name in GROUPS.items())]).replace(
                "</p>", f'<span><i class="s0 key ringed"></i>{found.spec.baseline}</span></p>'
            )
        )
    if not parts:
        return None
    return Section("frequency", "Rare, common and frequent classes", "Frequency", "".join(parts))


def _by_group(material: Material, found: Table, dataset: str) -> str:
    style, drawings, baseline = styles(found.spec), [], found.spec.baseline
    if baseline is None:
        return ""
    for detector in found.spec.detectors:
        base = _group_values(material.records(found, dataset, detector, baseline))
        series, reached = [], [0.0, 1.0, -1.0]
        for loss in found.spec.losses:
            values = _group_values(material.records(found, dataset, detector, loss))
            pairs = list(zip(values, base, strict=True))
            points = [None if None in pair else 100 * (pair[0] - pair[1]) for pair in pairs]
            if loss == baseline or points == [None] * len(points):
                continue
            notes = [
                f"{loss}, {name}: {percent(value)} against {percent(other)}"
                for name, (value, other) in zip(GROUPS.values(), pairs, strict=True)
            ]
            reached += [point for point in points if point is not None]
            series.append(Series(loss, style[loss], (0, 1, 2), points, dots=True, notes=notes))
        if series:
            series.sort(key=lambda one: one.name == "afl")
            x = Axis(-0.25, 2.25, ticks=list(enumerate(GROUPS.values())))
            y = Axis(*extent(reached), f"points of AP over {baseline}")
            drawings.append(chart(detector_name(detector), series, x, y))
    return f'<div class="grid">{"".join(drawings)}</div>' if drawings else ""


def _group_values(records: Sequence[Record]) -> list[float | None]:
    """Means over seeds of AP_r, AP_c and AP_f."""
    return [_mean([record.metrics.get(name) for record in records]) for name in GROUP_METRICS]


def _by_class(material: Material, found: Table, dataset: str) -> str:
    if found.spec.baseline is None:
        return ""
    counts = material.instances[dataset]
    arms = [loss for loss in found.spec.losses if loss != found.spec.baseline]
    arms.sort(key=lambda loss: loss != "afl")
    shown = {}
    for loss in arms:
        drawings = []
        for detector in found.spec.detectors:
            base = material.records(found, dataset, detector, found.spec.baseline)
            other = material.records(found, dataset, detector, loss)
            if base and other:
                drawings.append(_dumbbells(detector_name(detector), base, other, counts, loss))
        if drawings:
            shown[loss] = f'<div class="grid">{"".join(drawings)}</div>'
    return choices(f"classes-{dataset}", "Loss", shown) if shown else ""


def _dumbbells(
    title: str, base: Sequence[Record], other: Sequence[Record], counts: Mapping[str, int], loss: str
) -> str:
    points = []
    for name, count in counts.items():
        before, after = (_mean([record.per_class.get(name) for record in runs]) for runs in (base, other))
        if before is not None and after is not None and count > 0:
            points.append((count, before, after, base[0].groups.get(name, "f"), name))
    if not points:
        return ""
    x = Axis(
        min(p[0] for p in points) * 0.8, max(p[0] for p in points) * 1.25, "training instances", log=True
    )
    y = Axis(0, max(max(p[1], p[2]) for p in points) * 106 or 1.0, "AP")
    if len(points) > MOST_DOTS:
        return chart(title, _binned(points, loss, base[0].loss), x, y)
    stems = "".join(
        f'<line class="stem" x1="{px:.1f}" x2="{px:.1f}" y1="{y.place(100 * a, 230 - BOTTOM, TOP):.1f}" '
        f'y2="{y.place(100 * b, 230 - BOTTOM, TOP):.1f}"/>'
        for count, a, b, _, _ in points
        for px in [x.place(count, LEFT, 330 - RIGHT)]
    )
    series = []
    for group in GROUPS:
        own = [p for p in points if p[3] == group]
        notes = [
            f"{name}, {count} instances: {percent(a)} to {percent(b)} ({percent(b - a, True)})"
            for count, a, b, _, name in own
        ]
        at = [p[0] for p in own]
        series.append(
            Series(base[0].loss, "s0", at, [100 * p[1] for p in own], False, True, True, notes=notes)
        )
        series.append(Series(loss, group, at, [100 * p[2] for p in own], False, True, notes=notes))
    return chart(title, series, x, y, extra=stems)


def _binned(points: Sequence[tuple], loss: str, baseline: str) -> list[Series]:
    """Means over classes of like frequency, each bin with the same number of classes."""
    ordered = sorted(points)
    size = math.ceil(len(ordered) / BINS)
    bins = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    at = [math.exp(sum(math.log(p[0]) for p in part) / len(part)) for part in bins]
    made = []
    for name, place, style in ((baseline, 1, "s0"), (loss, 2, "s1")):
        values = [100 * sum(p[place] for p in part) / len(part) for part in bins]
        notes = [
            f"{name}, {len(part)} classes: {value:.1f}" for part, value in zip(bins, values, strict=True)
        ]
        made.append(Series(name, style, at, values, dots=True, notes=notes))
    return made


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
