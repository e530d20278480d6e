"""Joint checks of a training and a validation split, for training and ``prepare_data check``."""

from __future__ import annotations

from datasets.defects import defect_counts
from datasets.errors import DataError
from datasets.index import AnnotationIndex


def require_usable_splits(train: AnnotationIndex, val: AnnotationIndex) -> None:
    """Check that a detector can be trained on one split and evaluated on the other.

    Raises:
        DataError: the training images have no objects, a split has no images, or the classes of the splits differ.
    """
    for name, index in (("train", train), ("val", val)):
        if not len(index):
            raise DataError(
                f"{_named(index)} has no images that can be used{_left_out(index)}; correct dataset.{name}"
            )
    require_same_classes(train, val)
    if not train.counted.any():
        raise DataError(
            f"{_named(train)} has no objects to train on{_left_out(train)}; correct dataset.train or the annotations"
        )


def require_same_classes(train: AnnotationIndex, val: AnnotationIndex) -> None:
    """Check that two splits have the same classes with the same numbers.

    Raises:
        DataError: their category ids or names differ.
    """
    ours, theirs = (
        dict(zip(index.category_ids.tolist(), index.category_names, strict=True)) for index in (train, val)
    )
    for category_id in sorted(ours.keys() | theirs.keys()):
        if ours.get(category_id) != theirs.get(category_id):
            raise DataError(
                f"category {category_id} is {ours.get(category_id)!r} in {_named(train)} but "
                f"{theirs.get(category_id)!r} in {_named(val)}; give both files the same categories"
            )


def _named(index: AnnotationIndex) -> str:
    return ", ".join(index.sources)


def _left_out(index: AnnotationIndex) -> str:
    return f" (left out: {defect_counts(index.defects)})" if index.defects else ""
