"""Describes the protocol of a run in words, for the captions of tables."""

from __future__ import annotations

from omegaconf import DictConfig

from afl.training.initial_weights import SHAPES
from afl.training.loop import LoopOptions


def protocol(config: DictConfig, options: LoopOptions) -> dict[str, str]:
    """The description of a run in a caption, without its detector, loss, data set and seed."""
    trainer = config.trainer
    backbone = config.backbone.get("name") or "tiny"
    return {
        "backbone": f"{backbone}, {_start(config)}",
        "image size": _image_size(config),
        "schedule": f"{trainer.max_duration} ({options.total_steps} steps of {trainer.batch_size} images), "
        f"{config.schedule.factory['_target_'].split('.')[-1].removesuffix('_schedule')}",
        "optimiser": f"{config.optimizer.factory['_target_'].split('.')[-1]} {config.optimizer.factory.lr:g}",
        "precision": trainer.precision,
        "metric": config.dataset.metric,
    }


def _start(config: DictConfig) -> str:
    """The weights that training starts from: ``initial_weights`` is loaded over those of the backbone."""
    imagenet = "ImageNet weights" if config.backbone.get("pretrained") else ""
    if config.initial_weights == SHAPES:
        return f"{imagenet}{', then ' if imagenet else ''}pre-trained on generated images of other classes"
    return config.initial_weights or imagenet or "random weights"


def _image_size(config: DictConfig) -> str:
    """Size of the network's input at evaluation: the side of square images, the long side, or the short side with the limit of
    the long side."""
    resize = config.dataset.eval_transform[config.family]
    if "short_side" not in resize:
        return str(config.dataset.image_size)
    if resize.short_side == resize.max_long_side:
        return str(resize.short_side)
    return f"{resize.short_side}, at most {resize.max_long_side}"
