"""Initial weights of a run: a checkpoint, or features learned from generated images of other classes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from afl.training.build import ConfigError
from afl.training.checkpoint import UNREADABLE, CheckpointError, load_checkpoint, reason
from afl.training.classifier_stage import FIRST_STAGE, first_stage, restart_class_layers, wants_second_stage
from afl.training.distributed import World
from afl.training.features import NETWORK, features_file, features_identity, pretraining_config
from afl.training.load import difference_of_classes, trained_classes
from detectors.backbone import evaluated_weights, load_features

SHAPES = "shapes"
log = logging.getLogger(__name__)


def start_from(
    config: DictConfig,
    detector: nn.Module,
    world: World,
    pretrain: Callable[..., Path],
    names: Sequence[str],
) -> tuple[list[nn.Module], str | None]:
    """Load ``config.initial_weights`` into the detector: null, ``shapes``, or a file with weights under ``model``.

    All weights with a matching name and shape are loaded, except the class layers if the file says that it was trained on other
    classes; these layers keep their random weights. A loss that retrains class layers starts from a finished run with
    reinitialised class layers.

    Args:
        pretrain: gives the checkpoint of a config, training it first if need be; ``of_features`` says whether all losses share it.
        names: the classes of the data set, in the order of the labels.

    Returns:
        The class layers whose weights were loaded, and the digest of the initial weights: of the first stage's if the loss retrains
        class layers, None for random weights.

    Raises:
        ConfigError: the file does not exist or contains no weights, or several processes ask for weights that must be trained
            by one process first.
        CheckpointError: the pre-trained features are damaged.
    """
    source, content = config.initial_weights, None
    second_stage = wants_second_stage(detector)
    if second_stage and source in (None, SHAPES):
        if world.size > 1:
            raise ConfigError(
                f"loss={config.cell.loss} starts from a finished run, which one process makes: train loss={FIRST_STAGE} first, then "
                "give its checkpoint as initial_weights"
            )
        path = pretrain(first_stage(config), of_features=False)
    elif source is None:
        return [], None
    elif source == SHAPES:
        path = remove = features_file(config)
        if not path.is_file():
            if world.size > 1:
                raise ConfigError(
                    "initial_weights=shapes of this network is made by one process: train it without torchrun first "
                    "(experiment=pretrain), then give its checkpoint as initial_weights"
                )
            path = pretrain(pretraining_config(config), of_features=True)
            remove = path.parents[1]
        content = _checked(path, remove)
    else:
        path = _file(source)
    try:
        if content is None:
            content = torch.load(path, map_location="cpu", weights_only=True)
        difference = difference_of_classes(trained_classes(content), names)
        without = _of_classes(detector, len(names)) if difference else ()
        fresh = load_features(detector, content, path, without)
    except UNREADABLE as error:
        if isinstance(error, ValueError):  # the file can be read, but does not fit
            raise
        raise ConfigError(
            f"initial_weights={source}: {path} has no readable weights under 'model' ({reason(error)}); give a checkpoint, "
            "`shapes`, or null"
        ) from error
    if second_stage:
        restart_class_layers(detector)
    if world.is_main:
        log.info("starts from %s; fresh: %s", path, ", ".join(fresh) or "nothing")
        if difference and source != SHAPES:
            log.info(
                "%s was trained on other classes than the data set's, so class layers start fresh: %s",
                path,
                difference,
            )
    if second_stage:
        return [], content.get("initial_weights")
    own = {id(parameter): name for name, parameter in detector.named_parameters()}
    layers = (layer for layers in detector.class_layers().values() for layer in layers)
    loaded = [layer for layer in layers if own[id(layer.bias)] not in fresh]
    return loaded, digest_of_weights(evaluated_weights(content))


def digest_of_weights(weights: Mapping[str, Tensor]) -> str:
    """12 hexadecimal digits of the SHA-256 over names and values. Two trainings of the same features by other code, or on another
    processor, round differently, and all runs that start from them move with them."""
    digest = hashlib.sha256()
    tensors = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:12]


def _of_classes(detector: nn.Module, classes: int) -> set[str]:
    """Names of the parameters of the class layers of maps with one channel per class."""
    maps = [name for name, loss in detector.classification.items() if loss.info.num_classes == classes]
    layers = [
        id(part) for name in maps for layer in detector.class_layers()[name] for part in layer.parameters()
    ]
    return {name for name, parameter in detector.named_parameters() if id(parameter) in layers}


def identity(config: Mapping[str, Any]) -> str:
    """The part of the run key that identifies the initial weights of a resolved config: a digest of their training or of their file."""
    source = config["initial_weights"]
    if source is None:
        return ""
    if source == SHAPES:
        return features_identity(config["cell"]["detector"], {part: config[part] for part in NETWORK})
    return hashlib.sha256(_file(source).read_bytes()).hexdigest()[:12]


def _checked(path: Path, remove: Path) -> dict[str, Any]:
    """Read the pre-trained features and verify them, because all losses start from them.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"the pre-trained features cannot be used: {error}; delete {remove} to train them again"
        ) from error


def _file(source: str) -> Path:
    path = Path(source)
    if not path.is_file():
        raise ConfigError(f"initial_weights={source}: no such file; give a checkpoint, `shapes`, or null")
    return path
