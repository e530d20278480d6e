"""The protocol of a run in words, for the captions of tables."""

from __future__ import annotations

from omegaconf import DictConfig

from afl.training.loop import LoopOptions


def protocol(config: DictConfig, options: LoopOptions) -> dict[str, str]:
    """The description of a run in a caption, without its detector, loss, data set and seed."""
    trainer = config.trainer
    backbone = config.backbone.get("name") or "tiny"
    start = (
        "ImageNet weights"
        if config.backbone.get("pretrained")
        else config.initial_weights or "random weights"
    )
    return {
        "backbone": f"{backbone}, {start if start != 'shapes' else 'pre-trained on generated images of other classes'}",
        "image size": _image_size(config),
        "schedule": f"{trainer.max_duration} ({options.total_steps} steps of {trainer.batch_size} images), "
        f"{config.schedule.factory['_target_'].split('.')[-1].removesuffix('_schedule')}",
        "optimiser": f"{config.optimizer.factory['_target_'].split('.')[-1]} {config.optimizer.factory.lr:g}",
        "precision": trainer.precision,
        "metric": config.dataset.metric,
    }


def _image_size(config: DictConfig) -> str:
    """Size of the network's input at evaluation: the side of all images, their long side, or short side and limit of the
    long one."""
    resize = config.dataset.eval_transform[config.family]
    if "short_side" not in resize:
        return str(config.dataset.image_size)
    if resize.short_side == resize.max_long_side:
        return str(resize.short_side)
    return f"{resize.short_side}, at most {resize.max_long_side}"
