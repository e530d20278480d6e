"""A data set in one page: frequency of its classes, sizes of its objects, some images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afl.reporting.names import GROUPS
from afl.reporting.pages.chart import Chart, paint
from afl.reporting.pages.page import Section, document
from afl.reporting.pages.photos import Photos
from afl.reporting.pages.pictures import truth_boxes
from afl.tracking import Picture

BINS = 24
LOWEST = 0.8  # objects; the logarithmic axis starts here
MOST_COUNTED = 40  # with more objects in an image, dots would touch
MOST_LISTED = 400
MOST_NAMED = 80  # classes; with more, a bar is narrower than a letter


@dataclass(frozen=True)
class Split:
    """Facts of a split.

    Attributes:
        name: ``train`` or ``val``.
        source: files that it was read from.
        images: their number.
        sides: (N, 2) height and width.
        boxes, labels: (A, 4) xyxy and (A,), without crowd regions and difficult objects.
        left_out: number of crowd regions and difficult objects.
        per_image: (N,) objects in each image.
        defects: bad records by kind.
    """

    name: str
    source: str
    images: int
    sides: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    left_out: int
    per_image: np.ndarray
    defects: Mapping[str, int]


def dataset_page(
    name: str,
    names: Sequence[str],
    groups: Sequence[str],
    instances: np.ndarray,
    images: np.ndarray,
    shown: np.ndarray,
    splits: Sequence[Split],
    samples: Sequence[Picture],
) -> str:
    """The page as HTML.

    Args:
        name: of the data set.
        names, groups: (C,) of its classes.
        instances, images: (C,) training objects, and training images with at least one.
        shown: (C,) how many times as often ``loss=irfs`` shows the objects of a class; NaN for a class without objects.
        splits: training first.
        samples: images with their objects.
    """
    train = splits[0]
    present = instances[instances > 0]
    tiles = [
        *((f"{split.images:,}", f"{split.name} images") for split in splits),
        (f"{len(train.labels):,}", "training objects"),
        (str(len(names)), "classes"),
        (" / ".join(str(list(groups).count(group)) for group in GROUPS), "rare / common / frequent"),
        (
            f"{present.max() / present.min():,.0f} : 1" if len(present) else "–",
            "most to least frequent class",
        ),
    ]
    photos = Photos()
    views = [
        (photos.show(own.name, own.pixels, truth_boxes(own, names, groups)), own.name) for own in samples
    ]
    sections = [
        Section("classes", "Classes", "Classes", "classes.html.j2", _classes(names, groups, instances, images, shown)),
        Section("objects", "Objects", "Objects", "objects.html.j2", _objects(train, groups)),
        Section("samples", "Some images", "Images", "samples.html.j2", {"views": views, "photos": photos}),
        Section(
            "source", "Files", "Source", "sources.html.j2",
            {"splits": {split.name: _source(split) for split in splits}},
        ),
    ]  # fmt: skip
    return document(f"Data set {name}", sections, tiles)


def _classes(
    names: Sequence[str],
    groups: Sequence[str],
    instances: np.ndarray,
    images: np.ndarray,
    shown: np.ndarray,
) -> dict[str, Any]:
    order = np.argsort(-instances, kind="stable")
    return {
        "chart": _class_bars(
            [names[c] for c in order],
            [groups[c] for c in order],
            instances[order],
            [f"{names[c]}: {instances[c]:,} objects in {images[c]:,} images" for c in order],
        ),
        "absent": [names[c] for c in order if instances[c] == 0],
        "rows": [
            [
                names[c],
                GROUPS[groups[c]],
                f"{instances[c]:,}",
                f"{images[c]:,}",
                "–" if np.isnan(shown[c]) else f"{shown[c]:.1f}",
            ]
            for c in order[:MOST_LISTED]
        ],
        "more": max(0, len(order) - MOST_LISTED),
    }


def _class_bars(
    names: Sequence[str], groups: Sequence[str], counts: np.ndarray, notes: Sequence[str]
) -> Chart:
    """A bar for each class, with its name along it if there is room."""
    width = min(max(330, 56 + 34 * len(names)), 1040)
    chart = Chart(
        "Training objects of each class", "classes by falling frequency", "training objects", width, 260
    )
    chart.span("y", LOWEST, max(float(counts.max()) * 1.2, 10.0), log=True)
    chart.axis.set_xlim(-0.5, len(names) - 0.5)
    chart.ticks("x", (), ())
    height = np.maximum(counts, LOWEST * 1.02)
    drawn = chart.axis.bar(
        range(len(names)), height - LOWEST, bottom=LOWEST, color=[paint(group) for group in groups]
    )
    chart.bars(drawn, notes)
    if len(names) <= MOST_NAMED:
        for place, name in enumerate(names):
            chart.write(place, LOWEST * 1.1, name)
    return chart


def _objects(train: Split, groups: Sequence[str]) -> dict[str, Any]:
    wide, high = (train.boxes[:, 2] - train.boxes[:, 0]), (train.boxes[:, 3] - train.boxes[:, 1])
    kept = (wide > 0) & (high > 0)
    wide, high, labels = wide[kept], high[kept], train.labels[kept]
    if not len(labels):
        return {"text": "The training split has no objects.", "charts": []}
    of_group = np.array([groups[label] for label in labels])
    size = np.sqrt(wide * high)
    cuts = np.percentile(size, [5, 50, 95])
    sides = dict.fromkeys(f"{width} x {height}" for height, width in (train.sides.min(0), train.sides.max(0)))
    return {
        "text": f"Half of the objects are smaller than {cuts[1]:.0f} pixels, a twentieth smaller than {cuts[0]:.0f}, "
        f"a twentieth larger than {cuts[2]:.0f}. Images have {' to '.join(sides)} pixels.",
        "charts": [
            _shares("Size, √(width × height)", size, of_group, "pixels"),
            _shares("Shape, width / height", wide / high, of_group, "ratio"),
            _counts("Objects in an image", train.per_image),
        ],
    }


def _shares(title: str, values: np.ndarray, of_group: np.ndarray, label: str) -> Chart:
    """Share of each group's objects by size, on a logarithmic axis."""
    low, high = float(values.min()) * 0.95, float(values.max()) * 1.05
    edges = np.geomspace(low, high, BINS + 1)
    chart, highest = Chart(title, label, "% of the group"), 1.0
    for group in GROUPS:
        own = values[of_group == group]
        if len(own):
            share = 100 * np.histogram(own, edges)[0] / len(own)
            highest = max(highest, float(share.max()))
            chart.points(np.sqrt(edges[:-1] * edges[1:]), share, group, GROUPS[group], line="-")
    chart.span("x", low, high, log=True)
    chart.span("y", 0, highest * 1.08)
    return chart


def _counts(title: str, per_image: np.ndarray) -> Chart:
    most = max(int(np.percentile(per_image, 99)), 1)
    number = np.bincount(np.minimum(per_image, most), minlength=most + 1)
    share = 100 * number / max(len(per_image), 1)
    chart = Chart(title, "objects", "% of the images")
    if most < MOST_COUNTED:
        notes = [f"{k}{' or more' if k == most else ''}: {n:,} images" for k, n in enumerate(number)]
        chart.points(range(most + 1), share, "s1", notes, "dot", "-")
    else:
        chart.points(range(most + 1), share, "s1", "images", line="-")
    chart.span("x", 0, most)
    chart.span("y", 0, float(share.max()) * 1.08)
    return chart


def _source(split: Split) -> list[tuple[str, str]]:
    return [
        ("read from", split.source),
        ("images", f"{split.images:,}"),
        ("objects", f"{len(split.labels):,}"),
        ("left out of training", f"{split.left_out:,} crowd regions and difficult objects"),
        ("images without an object", f"{int((split.per_image == 0).sum()):,}"),
        *((f"defect: {kind}", f"{count:,}, left out") for kind, count in split.defects.items()),
    ]
