"""Validation images with the detections of the detectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from afl.reporting.names import detector_name
from afl.reporting.pages.material import Gallery, Material
from afl.reporting.pages.page import Section
from afl.reporting.pages.photos import Box, Photos, View, box
from afl.tracking import Picture

SCORE, MATCH = 0.3, 0.5  # lowest score of a shown detection, lowest IoU of a right one


def pictures_section(material: Material) -> Section | None:
    """Ground truth, then the detections of the baseline and of another loss, for each detector."""
    if not material.galleries:
        return None
    photos, shown = Photos(), {}
    baseline = material.main.spec.baseline
    places = dict.fromkeys((own.record.dataset, own.record.detector) for own in material.galleries)
    for dataset, detector in places:
        arms = [g for g in material.galleries if (g.record.dataset, g.record.detector) == (dataset, detector)]
        arms.sort(key=lambda gallery: gallery.record.loss != baseline)
        name = detector_name(detector) + (f", {dataset}" if len({place[0] for place in places}) > 1 else "")
        shown[name] = _figures(photos, arms)
    content = {"score": SCORE, "match": MATCH, "detectors": shown, "photos": photos}
    return Section("pictures", "Detections", "Pictures", "pictures.html.j2", content)


def _figures(photos: Photos, arms: Sequence[Gallery]) -> list[tuple[list[View], str]]:
    """The views of each image with their caption."""
    first = arms[0]
    caption = " · ".join(["ground truth", *(arm.record.loss for arm in arms)])
    figures = []
    for i, picture in enumerate(first.pictures):
        name = f"{first.record.dataset}-{picture.name}"
        views = [photos.show(name, picture.pixels, truth_boxes(picture, first.names, first.groups))]
        views += [
            photos.show(name, arm.pictures[i].pixels, found_boxes(arm.pictures[i], arm)) for arm in arms
        ]
        figures.append((views, caption))
    return figures


def truth_boxes(picture: Picture, names: Sequence[str], groups: Sequence[str]) -> list[Box]:
    """The box of every object, in the colour of its group."""
    return [
        box(xyxy, groups[label], names[label])
        for xyxy, label in zip(picture.boxes, picture.labels.tolist(), strict=True)
    ]


def found_boxes(picture: Picture, gallery: Gallery) -> list[Box]:
    """The box of every detection above the score; the best is last and therefore on top."""
    right = correct(picture)
    return [
        box(
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
