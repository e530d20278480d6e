"""Splits that cannot be used for training or evaluation, each derived from a good one."""

from __future__ import annotations

import numpy as np
import pytest

from datasets import DataError, read_coco, require_usable_splits


@pytest.fixture
def good(write_coco, small_coco):
    return read_coco(*write_coco(small_coco))


def test_a_good_pair_passes(good):
    require_usable_splits(good, good)


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_split_without_images_is_named(good, name):
    empty = good.select([])
    with pytest.raises(
        DataError, match=rf"instances.json has no images that can be used; correct dataset.{name}"
    ):
        require_usable_splits(*((empty, good) if name == "train" else (good, empty)))


def test_skipped_records_are_reported(write_coco, small_coco):
    path, root = write_coco(small_coco)
    for name in ("a.jpg", "b.png"):
        (root / name).write_bytes(b"<html>")
    index = read_coco(path, root, policy="skip")
    with pytest.raises(DataError, match=r"no images that can be used \(left out: 2 x broken_image\)"):
        require_usable_splits(index, index)


def test_only_training_needs_an_object(good):
    without = good.select([0, 1])
    without.crowd[:] = True
    require_usable_splits(good, without)
    with pytest.raises(DataError, match="has no objects to train on"):
        require_usable_splits(without, good)
    assert np.flatnonzero(~good.crowd).size  # a copy was changed
