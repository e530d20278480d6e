"""``dataset.image_size`` sets the size of a detector's images, or is rejected in one line."""

from __future__ import annotations

import pytest

from afl.config import CONF, ConfigError, apply_overrides
from scripts.entry import checked, compose_config

# The published transform of the dense detectors draws the short side from a range.
BY_SHORT_SIDE = {"coco", "lvis", "voc", "bccd", "custom", "custom_voc", "custom_yolo"}
RESIZED = sorted(
    path.stem for path in (CONF / "dataset").glob("*.yaml") if not path.stem.startswith("shapes")
)


def size_at_evaluation(*overrides: str) -> tuple[int, int]:
    """Short side and limit of the long side, with ``dataset.image_size=64``."""
    config = compose_config([*overrides, "dataset.image_size=64"])
    resize = config.dataset.eval_transform[config.family]
    return resize.short_side, resize.max_long_side


@pytest.mark.parametrize("name", RESIZED)
def test_a_dense_detector_uses_the_size_or_rejects_it(name):
    if name in BY_SHORT_SIDE:
        with pytest.raises(ConfigError, match="dataset.image_size has no effect on this detector") as caught:
            size_at_evaluation("detector=fcos", f"dataset={name}")
        assert "dataset.eval_transform.dense.short_side" in str(caught.value)
        assert "\n" not in str(caught.value)
    else:
        assert size_at_evaluation("detector=fcos", f"dataset={name}") == (64, 64)


@pytest.mark.parametrize("name", ["coco", "voc"])
def test_a_heat_map_detector_uses_the_size(name):
    assert size_at_evaluation("detector=centernet", f"dataset={name}") == (64, 64)


@pytest.mark.parametrize("name", ["custom", "custom_voc", "custom_yolo"])
def test_all_detectors_use_the_size_with_the_preset_for_small_sets(name):
    choices = "detector=retinanet", "experiment=small", f"dataset={name}"
    assert size_at_evaluation(*choices) == (64, 64)


def test_generated_images_have_the_size_for_all_detectors():
    config = compose_config(["detector=fcos", "dataset=shapes", "dataset.image_size=64"])
    assert config.dataset.folder.image_size == 64


def test_another_setting_may_refer_to_the_size():
    names = ("short_side", "max_long_side")
    follow = [f"dataset.eval_transform.dense.{name}=${{dataset.image_size}}" for name in names]
    assert size_at_evaluation("detector=fcos", "dataset=coco", *follow) == (64, 64)


def test_the_size_of_a_subset_is_named():
    with pytest.raises(ConfigError, match="has no effect with this experiment: set subset.image_size"):
        size_at_evaluation("detector=fcos", "dataset=coco", "experiment=overfit")


def test_a_finished_run_also_rejects_it():
    config = compose_config(["detector=fcos", "dataset=coco"])
    with pytest.raises(ConfigError, match="dataset.image_size has no effect"):
        apply_overrides(config, ["dataset.image_size=64"])


def test_a_sweep_is_rejected_if_one_detector_would_ignore_the_size():
    sweep = ["-m", "loss=fl,afl", "dataset=coco", "dataset.image_size=64"]
    with pytest.raises(ConfigError, match="dataset.image_size has no effect on this detector"):
        checked([*sweep, "detector=centernet,fcos"], "config")
    assert "dataset.image_size=64" in checked([*sweep, "detector=centernet,cornernet"], "config")
