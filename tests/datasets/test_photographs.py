"""The photograph data sets, read with their configs, compared with the counts that their authors state."""

from __future__ import annotations

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from afl.training.build import instantiate
from afl.training.data import build_evaluator, read_data
from datasets import ClassStatistics, DetectionDataset
from scripts.entry import CONF


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Parsed annotations, shared by the tests, because decoding the masks takes seconds."""
    return tmp_path_factory.mktemp("cache")


def configuration(shared_data, cache, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(
            "config", [f"paths.data={shared_data}", f"paths.cache={cache}", "backbone=lite0", *overrides]
        )


@pytest.mark.parametrize("fold", ["a", "b"])
@pytest.mark.parametrize("split", [0, 1])
@pytest.mark.parametrize(("name", "images", "boxes"), [("ccp", 1004, 7267), ("chula", 621, 22106)])
def test_each_half_validates_the_other(shared_data, cache, name, images, boxes, split, fold):
    chosen = f"dataset={name}", f"dataset.split={split}", f"dataset.fold={fold}", "detector=fcos"
    data = read_data(configuration(shared_data, cache, *chosen))
    assert data.train.sources[0].endswith(f"/split{split}_{fold}.json")
    ids = np.concatenate([data.train.image_ids, data.val.image_ids])
    assert len(ids) == len(set(ids)) == images
    assert len(data.train.labels) + len(data.val.labels) == boxes


def test_the_partitions_differ(shared_data, cache):
    for name in ("ccp", "chula"):
        both = [
            read_data(
                configuration(shared_data, cache, f"dataset={name}", f"dataset.split={s}", "detector=fcos")
            )
            for s in (0, 1)
        ]
        assert set(both[0].train.image_ids) != set(both[1].train.image_ids)


@pytest.mark.parametrize("draw", [0, 1])
def test_foda_has_a_long_tail(shared_data, cache, draw):
    data = read_data(
        configuration(shared_data, cache, "dataset=foda", f"dataset.draw={draw}", "detector=fcos")
    )
    assert (len(data.train), len(data.val), len(data.val.labels)) == (2089, 1112, 1131)
    # The training images of the classes decrease geometrically from 300 to 3; some images show a second object.
    curve = sorted(max(3, round(300 * 0.01 ** (r / 30))) for r in range(31))
    assert (np.sort(data.statistics.images) >= curve).all()
    assert [list(data.statistics.groups).count(g) for g in "fcr"] == [8, 14, 9]
    assert ClassStatistics.from_index(data.val).instances.min() >= 32


def test_the_two_draws_rank_the_classes_differently(shared_data, cache):
    counts = [
        read_data(
            configuration(shared_data, cache, "dataset=foda", f"dataset.draw={draw}", "detector=fcos")
        ).statistics.images
        for draw in (0, 1)
    ]
    assert np.corrcoef(*counts)[0, 1] < 0.5


@pytest.mark.parametrize("name", ["ccp", "foda", "chula", "coco_sample", "trashcan", "bccd"])
@pytest.mark.parametrize("family", ["dense", "heatmap"])
def test_training_and_validation_samples(shared_data, cache, name, family):
    detector = {"dense": "fcos", "heatmap": "extremenet"}[family]
    config = configuration(shared_data, cache, f"dataset={name}", f"detector={detector}")
    data, dataset = read_data(config), config.dataset
    source = (dataset.extreme_source or "masks") if config.needs_extreme_points else None
    train = DetectionDataset(data.train, instantiate(dataset.train_transform[family]), extreme_source=source)
    val = DetectionDataset(data.val, instantiate(dataset.eval_transform[family]))
    for i in range(3):
        sample, seen = train[0, i], val[0, i]
        if source:
            known = ~np.isnan(sample.extreme_points).any(axis=(1, 2))
            assert len(sample.boxes) == 0 or known.any()
            # Left and right points are on the sides of the box, within a pixel if they come from a mask.
            off = np.abs(sample.extreme_points[known][:, 1, 0] - sample.boxes[known][:, 0])
            assert (off < 3).all()
        if name != "bccd":
            assert max(seen.image.shape[:2]) == dataset.image_size
    assert build_evaluator(config, data) is not None
