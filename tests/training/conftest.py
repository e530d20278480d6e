"""A run that is small enough for a test: few generated images, a few steps, no pre-training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from omegaconf import DictConfig

from afl.training.compose import compose_cell


@pytest.fixture
def small_cell(tmp_path) -> Callable[..., DictConfig]:
    """``small_cell(detector, loss, *overrides)``: a config whose runs are in the test's folder."""

    def make(detector: str = "centernet", loss: str = "fl", *overrides: str) -> DictConfig:
        return compose_cell(
            detector=detector,
            loss=loss,
            overrides=[
                "dataset=shapes_coco",
                "dataset.folder.num_train=24",
                "dataset.folder.num_val=10",
                "initial_weights=null",
                "logger=none",
                "trainer.progress=none",
                "trainer.batch_size=4",
                "trainer.eval_batch_size=4",
                "trainer.max_duration=9steps",
                "trainer.checkpoint_every=3steps",
                "trainer.log_every=1steps",
                "trainer.device=cpu",
                f"paths.output={tmp_path}/outputs",
                f"paths.cache={tmp_path}/cache",
                *overrides,
            ],
        )

    return make
