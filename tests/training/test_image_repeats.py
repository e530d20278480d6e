"""Repeat-factor sampling requested by a loss equals the sampling of the data set's setting, image by image."""

from __future__ import annotations

import pytest
import torch

from afl.config import ConfigError
from afl.losses import ImageRepeats
from afl.training.compose import compose_cell
from afl.training.data import read_data, training_batches
from afl.training.distributed import World

WORLD = World(0, 1, torch.device("cpu"))
SMALL = ("dataset=shapes", "dataset.folder.num_train=40", "dataset.folder.num_val=10", "trainer.batch_size=8")


def images(config, data, repeats=None) -> list[int]:
    stream = iter(training_batches(config, data, WORLD, 0, repeats))
    return [image for _ in range(12) for image in next(stream).image_ids.tolist()]


@pytest.mark.parametrize("count_instances", [False, True])
def test_a_loss_repeats_images_like_the_setting_of_the_data_set(tmp_path, count_instances):
    paths = (f"paths.cache={tmp_path}", f"paths.data={tmp_path}")
    plain = compose_cell(detector="fcos", loss="fl", overrides=[*SMALL, *paths])
    data = read_data(plain)
    by_data_set = compose_cell(
        detector="fcos",
        loss="fl",
        overrides=[
            *SMALL,
            *paths,
            "dataset.repeat_threshold=0.5",
            f"dataset.repeat_by_instances={count_instances}",
        ],
    )
    wanted = images(by_data_set, data)
    assert images(plain, data, ImageRepeats(20.0, count_instances)) == wanted != images(plain, data)
    with pytest.raises(ConfigError, match="both repeat images"):
        images(by_data_set, data, ImageRepeats(20.0, count_instances))
