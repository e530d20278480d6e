"""The ground truth of an evaluation: checked once, and stored as flat arrays."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class GroundTruth:
    """I images, C classes and A annotations of a COCO-format dictionary.

    Classes are numbered in the order of ``categories``, and images by ascending id, the order in which the official evaluators
    break ties between equal scores.

    Attributes:
        image_ids: (I,) original ids, ascending.
        category_ids: (C,) original ids; a detector's label is a position in this list.
        names: (C,) class names, unique.
        frequency: (C,) "r", "c" or "f" if every category has one (LVIS), otherwise None.
        image: (A,) int64 position of each annotation's image in ``image_ids``.
        label: (A,) int64 class numbers.
        boxes: (A, 4) float64 (x, y, width, height) in pixels of the original image.
        area: (A,) float64 ``area`` of the annotation, or the area of its box if the file has none.
        crowd: (A,) bool: regions with many objects.
        ignored: (A,) bool: crowd, difficult or ignored objects, which count neither as missed nor as false positives.
    """

    image_ids: list[int]
    category_ids: list[int]
    names: list[str]
    frequency: list[str] | None
    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    ignored: np.ndarray

    @classmethod
    def from_coco(cls, data: Mapping) -> GroundTruth:
        """Read ``images``, ``categories`` and ``annotations``.

        Raises:
            ValueError: a list is missing, an id or class name appears twice, or an annotation has an unknown image, an unknown
                category, or no box of four numbers.
        """
        for key in ("images", "categories", "annotations"):
            if key not in data:
                raise ValueError(f"the ground truth has no {key!r}; a COCO-format dictionary is needed")
        image_ids = sorted(image["id"] for image in data["images"])
        category_ids = [category["id"] for category in data["categories"]]
        names = [category["name"] for category in data["categories"]]
        _refuse_repeats(image_ids, "image id")
        _refuse_repeats(category_ids, "category id")
        _refuse_repeats(names, "class name")
        frequency = [category.get("frequency") for category in data["categories"]]
        image_of = {number: position for position, number in enumerate(image_ids)}
        label_of = {number: position for position, number in enumerate(category_ids)}

        annotations = data["annotations"]
        image = np.empty(len(annotations), np.int64)
        label = np.empty(len(annotations), np.int64)
        boxes = np.empty((len(annotations), 4), np.float64)
        area = np.empty(len(annotations), np.float64)
        crowd, ignored = np.empty((2, len(annotations)), bool)
        for row, annotation in enumerate(annotations):
            where = f"annotation {annotation.get('id', row)} of the ground truth"
            if annotation["image_id"] not in image_of:
                raise ValueError(
                    f"{where} has image_id {annotation['image_id']}, which is not among the images"
                )
            if annotation["category_id"] not in label_of:
                raise ValueError(
                    f"{where} has category_id {annotation['category_id']}, which is not among the categories"
                )
            box = annotation.get("bbox")
            if box is None or len(box) != 4:
                raise ValueError(f"{where} needs a bbox of four numbers, it has {box}")
            image[row] = image_of[annotation["image_id"]]
            label[row] = label_of[annotation["category_id"]]
            boxes[row] = box
            area[row] = annotation.get("area", box[2] * box[3])
            crowd[row] = bool(annotation.get("iscrowd"))
            ignored[row] = any(annotation.get(flag) for flag in ("iscrowd", "ignore", "difficult"))
        return cls(
            image_ids=image_ids,
            category_ids=category_ids,
            names=names,
            frequency=None if not frequency or None in frequency else frequency,
            image=image,
            label=label,
            boxes=boxes,
            area=area,
            crowd=crowd,
            ignored=ignored,
        )

    def take(self, rows: np.ndarray) -> GroundTruth:
        """The same images and classes with the annotations ``rows`` (indices or a mask)."""
        arrays = {
            name: getattr(self, name)[rows]
            for name in ("image", "label", "boxes", "area", "crowd", "ignored")
        }
        return replace(self, **arrays)

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.category_ids)

    def digest(self) -> str:
        """SHA-256 of the images, the classes and the annotations."""
        found = hashlib.sha256(json.dumps([self.image_ids, self.category_ids, self.names]).encode())
        for array in (self.image, self.label, self.boxes, self.area, self.crowd, self.ignored):
            found.update(array.tobytes())
        return found.hexdigest()

    def frequency_groups(self, groups: Sequence[str] | None) -> list[str] | None:
        """(C,) group of each class: ``groups`` if given, otherwise the groups of the file.

        Raises:
            ValueError: ``groups`` does not have one entry per class, or an entry is not r, c or f.
        """
        chosen = list(groups) if groups is not None else self.frequency
        if chosen is None:
            return None
        if len(chosen) != self.num_classes:
            raise ValueError(f"{len(chosen)} frequency groups were given for {self.num_classes} classes")
        for name, group in zip(self.names, chosen, strict=True):
            if group not in ("r", "c", "f"):
                raise ValueError(f"class {name!r} has frequency group {group!r}; it must be 'r', 'c' or 'f'")
        return chosen


def _refuse_repeats(values: Iterable[Hashable], what: str) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"the ground truth has the {what} {repeated[0]!r} more than once")


def lvis_images(
    image_ids: Sequence[int], category_ids: Sequence[int], negative: np.ndarray, not_exhaustive: np.ndarray
) -> list[dict]:
    """The images of an LVIS file from (n, 2) pairs of a position of an image and a label."""
    fields = {"neg_category_ids": negative, "not_exhaustive_category_ids": not_exhaustive}
    images = [{"id": number, **{field: [] for field in fields}} for number in image_ids]
    for field, pairs in fields.items():
        for image, label in pairs.tolist():
            images[image][field].append(category_ids[label])
    return images
