"""One picture of the detections of several detectors in the same images, for a README or a paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from afl.reporting.figures.style import FULL_WIDTH, GROUP_COLORS, styled
from afl.reporting.names import GROUPS, detector_name
from afl.reporting.pages.material import Gallery
from afl.reporting.pages.pictures import SCORE, correct
from afl.tracking import Picture


def draw_gallery(galleries: Sequence[Gallery]) -> Figure:
    """A row for each image: ground truth, then each run's detections with a score of at least ``SCORE``.

    Boxes have the colour of their class's frequency group; a dashed line marks a detection without an object of its class.

    Args:
        galleries: one for each column, with the same images in the same order.

    Raises:
        ValueError: there are none, or they show different images.
    """
    if not galleries:
        raise ValueError("a gallery needs at least one run")
    first = galleries[0].pictures
    if any([p.name for p in gallery.pictures] != [p.name for p in first] for gallery in galleries):
        raise ValueError("the runs of a gallery must show the same images")
    columns = 1 + len(galleries)
    side = FULL_WIDTH / columns
    shape = max(picture.pixels.shape[0] / picture.pixels.shape[1] for picture in first)
    with styled():
        figure = Figure(figsize=(FULL_WIDTH, side * shape * len(first) + 0.5))
        figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
        axes = figure.subplots(len(first), columns, squeeze=False)
        for row, picture in zip(axes, first, strict=True):
            _show(row[0], picture)
            for box, label in zip(picture.boxes, picture.labels.tolist(), strict=True):
                _box(row[0], box, GROUP_COLORS[galleries[0].groups[label]], right=True)
        for column, gallery in enumerate(galleries, start=1):
            for row, picture in zip(axes, gallery.pictures, strict=True):
                _show(row[column], picture)
                right = correct(picture)
                # Wrong detections are drawn first, below the right ones.
                for k in np.lexsort((picture.found_scores, right)):
                    if picture.found_scores[k] >= SCORE:
                        group = gallery.groups[int(picture.found_labels[k])]
                        _box(row[column], picture.found_boxes[k], GROUP_COLORS[group], right=bool(right[k]))
        names = ["ground truth", *(detector_name(gallery.record.detector) for gallery in galleries)]
        for axis, name in zip(axes[0], names, strict=True):
            axis.set_title(name, fontsize=8, pad=3)
        handles = [Patch(color=GROUP_COLORS[group]) for group in GROUPS]
        figure.legend(handles, GROUPS.values(), loc="outside lower center", ncols=3)
    return figure


def _show(axis: Axes, picture: Picture) -> None:
    height, width = picture.pixels.shape[:2]
    axis.imshow(picture.pixels, extent=(0, width, height, 0), interpolation="bicubic")
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=(), yticks=())
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def _box(axis: Axes, box: np.ndarray, color: str, right: bool) -> None:
    x1, y1, x2, y2 = box.tolist()
    # A white line below keeps the colour of a right detection visible on any image.
    for width, edge in ((2.0, "white"), (1.2, color)) if right else ((0.8, color),):
        line = "-" if right else (0, (3, 1.5))
        axis.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=width, linestyle=line)
        )
