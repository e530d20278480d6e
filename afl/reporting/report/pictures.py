"""Validation images as the detectors see them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from afl.reporting.names import detector_name
from afl.reporting.report.material import Gallery, Material
from afl.reporting.report.page import Photos, Section, choices
from afl.reporting.report.svg import legend
from afl.tracking import Picture

SCORE, MATCH = 0.3, 0.5


def pictures_section(material: Material) -> Section | None:
    """Ground truth beside the detections of the baseline and of another loss, for each detector."""
    if not material.galleries:
        return None
    photos, shown = Photos(), {}
    baseline = material.main.spec.baseline
    places = {(g.record.dataset, g.record.detector): None for g in material.galleries}
    for dataset, detector in places:
        arms = [g for g in material.galleries if (g.record.dataset, g.record.detector) == (dataset, detector)]
        arms.sort(key=lambda gallery: gallery.record.loss != baseline)
        name = detector_name(detector) + (f", {dataset}" if len({place[0] for place in places}) > 1 else "")
        shown[name] = f'<div class="photos">{_figures(photos, arms)}</div>'
    body = (
        f'<p class="soft">Ground truth, then detections with a score of at least {SCORE:g}. Boxes have the colour of their '
        f"class's frequency group; a broken line is a detection without an object of its class at IoU {MATCH:g}.</p>"
        + choices("pictures", "Detector", shown)
        + '<div class="photos-legend">'
        + legend([("r", "rare"), ("c", "common"), ("f", "frequent")])
        + "</div>"
    )
    return Section("pictures", "What they find", "Pictures", body + photos.store())


def _figures(photos: Photos, arms: Sequence[Gallery]) -> str:
    figures = []
    for i, picture in enumerate(arms[0].pictures):
        name = f"{arms[0].record.dataset}-{picture.name}"
        views = [photos.show(name, picture.pixels, truth_boxes(picture, arms[0].names, arms[0].groups))]
        views += [
            photos.show(name, arm.pictures[i].pixels, found_boxes(arm.pictures[i], arm)) for arm in arms
        ]
        labels = " · ".join(["ground truth", *(arm.record.loss for arm in arms)])
        many = " three" if len(views) == 3 else ""
        figures.append(
            f'<figure><div class="views{many}">{"".join(views)}</div><figcaption>{escape(labels)}</figcaption></figure>'
        )
    return "".join(figures)


def truth_boxes(
    picture: Picture, names: Sequence[str], groups: Sequence[str]
) -> list[tuple[np.ndarray, str, str]]:
    """Box, class of its colour and tooltip of every object."""
    return [
        (box, groups[label], names[label])
        for box, label in zip(picture.boxes, picture.labels.tolist(), strict=True)
    ]


def found_boxes(picture: Picture, gallery: Gallery) -> list[tuple[np.ndarray, str, str]]:
    """The same of every detection above the score, the best last, so that it lies on top."""
    right = correct(picture)
    return [
        (
            picture.found_boxes[k],
            gallery.groups[int(picture.found_labels[k])] + ("" if right[k] else " wrong"),
            f"{gallery.names[int(picture.found_labels[k])]} {float(picture.found_scores[k]):.2f}"
            + ("" if right[k] else ", no such object here"),
        )
        for k in np.argsort(picture.found_scores, kind="stable")
        if picture.found_scores[k] >= SCORE
    ]


def correct(picture: Picture) -> np.ndarray:
    """(m,) bool: detections that overlap a still free object of their class by at least ``MATCH``, best scores first."""
    right, free = np.zeros(len(picture.found_scores), bool), np.ones(len(picture.labels), bool)
    for k in np.argsort(-picture.found_scores, kind="stable"):
        low = np.maximum(picture.boxes[:, :2], picture.found_boxes[k, :2])
        high = np.minimum(picture.boxes[:, 2:], picture.found_boxes[k, 2:])
        shared = np.clip(high - low, 0, None).prod(1)
        areas = (picture.boxes[:, 2:] - picture.boxes[:, :2]).prod(1)
        own = (picture.found_boxes[k, 2:] - picture.found_boxes[k, :2]).prod()
        iou = shared / np.maximum(areas + own - shared, 1e-9)
        iou[~free | (picture.labels != picture.found_labels[k])] = 0.0
        if len(iou) and iou.max() >= MATCH:
            right[k], free[iou.argmax()] = True, False
    return right
