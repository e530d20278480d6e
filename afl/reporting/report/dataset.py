"""A data set in one page: how often its classes occur, how large its objects are, what it looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from afl.reporting.names import GROUPS
from afl.reporting.report.page import Photos, Section, document, facts, note, table
from afl.reporting.report.pictures import truth_boxes
from afl.reporting.report.svg import Axis, Series, bars, chart, legend
from afl.tracking import Picture

BINS = 24
MOST_LISTED = 400
MOST_NAMED = 80  # classes; the bars of more are narrower than a letter


@dataclass(frozen=True)
class Split:
    """What is counted of a split.

    Attributes:
        name: ``train`` or ``val``; ``source``: where it was read from.
        images: their number; ``sides``: (N, 2) height and width.
        boxes: (A, 4) xyxy, ``labels``: (A,) of what is learnt, without crowd regions and difficult objects.
        left_out: number of these.
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
    splits: Sequence[Split],
    samples: Sequence[Picture],
) -> str:
    """The page as HTML.

    Args:
        name: of the data set; names, groups: (C,) of its classes.
        instances, images: (C,) training objects, and training images with at least one.
        splits: training first.
        samples: images with their objects.
    """
    train = splits[0]
    present = instances[instances > 0]
    ratio = f"{present.max() / present.min():,.0f} : 1" if len(present) else "–"
    tiles = [
        *((f"{split.images:,}", f"{split.name} images") for split in splits),
        (f"{len(train.labels):,}", "training objects"),
        (str(len(names)), "classes"),
        (" / ".join(str(list(groups).count(group)) for group in GROUPS), "rare / common / frequent"),
        (ratio, "most to least frequent class"),
    ]
    boxes = "".join(f"<div><b>{value}</b><span>{escape(text)}</span></div>" for value, text in tiles)
    sections = [
        Section("classes", "Classes", "Classes", _classes(names, groups, instances, images)),
        Section("objects", "Objects", "Objects", _objects(train, groups)),
        Section("samples", "Some images", "Images", _samples(names, groups, samples)),
        Section("source", "Where it comes from", "Source", _sources(splits)),
    ]
    return document(f"Data set {name}", f'<div class="tiles">{boxes}</div>', sections)


def _classes(names: Sequence[str], groups: Sequence[str], instances: np.ndarray, images: np.ndarray) -> str:
    order = np.argsort(-instances, kind="stable")
    values = [
        (
            groups[c],
            f"{names[c]}: {instances[c]:,} objects in {images[c]:,} images",
            max(float(instances[c]), 0.8),
        )
        for c in order
    ]
    y = Axis(0.8, max(float(instances.max()) * 1.2, 10.0), "training objects", log=True)
    drawn = bars(
        "Training objects of each class",
        values,
        y,
        width=1040,
        x_label="classes by falling frequency",
        names=[names[c] for c in order] if len(order) <= MOST_NAMED else (),
    )
    listed = table(
        ["class", "group", "objects", "images"],
        (
            [escape(names[c]), GROUPS[groups[c]], f"{instances[c]:,}", f"{images[c]:,}"]
            for c in order[:MOST_LISTED]
        ),
        text=(1,),
    )
    more = (
        "" if len(order) <= MOST_LISTED else f"<p class='soft'>and {len(order) - MOST_LISTED} rarer ones</p>"
    )
    absent = [names[c] for c in order if instances[c] == 0]
    words = ", ".join(absent[:10]) + (" …" if len(absent) > 10 else "")
    missing = note(f"{len(absent)} classes have no training object: {escape(words)}") if absent else ""
    return (
        "<p class='soft'>A class is rare in at most 10 training images, common in at most 100, frequent in more (LVIS's rule, "
        "unless the data set brings its own groups).</p>"
        f'<div class="scroll"><div style="min-width:640px">{drawn}</div></div>{_legend()}{missing}'
        f"<details><summary>All figures</summary>{listed}{more}</details>"
    )


def _objects(train: Split, groups: Sequence[str]) -> str:
    wide, high = (train.boxes[:, 2] - train.boxes[:, 0]), (train.boxes[:, 3] - train.boxes[:, 1])
    kept = (wide > 0) & (high > 0)
    wide, high, labels = wide[kept], high[kept], train.labels[kept]
    if not len(labels):
        return "<p>The training split has no objects.</p>"
    of_group = np.array([groups[label] for label in labels])
    size = np.sqrt(wide * high)
    drawings = [
        _shares("Size, √(width × height)", size, of_group, "pixels"),
        _shares("Shape, width / height", wide / high, of_group, "ratio"),
        _counts("Objects in an image", train.per_image),
    ]
    cuts = np.percentile(size, [5, 50, 95])
    text = (
        f"Half of the objects are smaller than {cuts[1]:.0f} pixels, a twentieth smaller than {cuts[0]:.0f}, a twentieth "
        f"larger than {cuts[2]:.0f}; images have {train.sides[:, 1].min()} x {train.sides[:, 0].min()} to "
        f"{train.sides[:, 1].max()} x {train.sides[:, 0].max()} pixels."
    )
    return f'<p>{text}</p><div class="grid">{"".join(drawings)}</div>{_legend()}'


def _shares(title: str, values: np.ndarray, of_group: np.ndarray, label: str) -> str:
    """Share of each group's objects by size, on a logarithmic axis."""
    low, high = float(values.min()) * 0.95, float(values.max()) * 1.05
    edges = np.geomspace(low, high, BINS + 1)
    middles = np.sqrt(edges[:-1] * edges[1:])
    series, highest = [], 1.0
    for group in GROUPS:
        own = values[of_group == group]
        if len(own):
            share = 100 * np.histogram(own, edges)[0] / len(own)
            highest = max(highest, float(share.max()))
            series.append(Series(GROUPS[group], group, middles.tolist(), share.tolist()))
    return chart(title, series, Axis(low, high, label, log=True), Axis(0, highest * 1.08, "% of the group"))


def _counts(title: str, per_image: np.ndarray) -> str:
    most = max(int(np.percentile(per_image, 99)), 1)
    number = np.bincount(np.minimum(per_image, most), minlength=most + 1)
    share = 100 * number / max(len(per_image), 1)
    notes = [f"{k}{' or more' if k == most else ''}: {n:,} images" for k, n in enumerate(number)]
    line = Series("images", "s1", list(range(most + 1)), share.tolist(), dots=most < 40, notes=notes)
    return chart(
        title, [line], Axis(0, most, "objects"), Axis(0, float(share.max()) * 1.08, "% of the images")
    )


def _samples(names: Sequence[str], groups: Sequence[str], samples: Sequence[Picture]) -> str:
    photos, figures = Photos(), []
    for picture in samples:
        view = photos.show(picture.name, picture.pixels, truth_boxes(picture, names, groups), labels=True)
        figures.append(
            f'<figure><div class="views">{view}</div><figcaption>image {escape(picture.name)}</figcaption></figure>'
        )
    return f'<div class="photos single">{"".join(figures)}</div>{_legend()}{photos.store()}'


def _sources(splits: Sequence[Split]) -> str:
    parts = []
    for split in splits:
        pairs = [
            ("read from", split.source),
            ("images", f"{split.images:,}"),
            ("objects", f"{len(split.labels):,}"),
            ("left out of training", f"{split.left_out:,} crowd regions and difficult objects"),
            ("images without an object", f"{int((split.per_image == 0).sum()):,}"),
            *((f"defect: {kind}", f"{count:,}, left out") for kind, count in split.defects.items()),
        ]
        parts.append(f"<h3>{escape(split.name)}</h3>{facts(pairs)}")
    return "".join(parts)


def _legend() -> str:
    return legend(list(GROUPS.items()))
