"""Pre-trained features for ``initial_weights=shapes``: the repository has those of its tables, others are trained on first use.

Another commit or processor rounds differently, gives other features, and moves all runs that start from them. With the files of
``detectors/pretrained`` every machine starts from the same weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from afl.config import CONF
from afl.training.checkpoint import FORMAT, load_checkpoint
from afl.training.compose import compose_cell
from detectors.backbone import evaluated_weights

FEATURES = CONF.parent / "detectors" / "pretrained"
NETWORK = ("backbone", "pyramid", "detector")  # parts of a config that describe the network
LOCAL = ("threads", "progress", "num_workers")  # settings of the trainer that do not affect the result
GENERATED = ("seed", "num_train", "num_val", "more_classes", "image_size")  # of the generated set


def features_file(config: DictConfig) -> Path:
    """The file of the features that fit a config's network. It exists for the networks that the tables use."""
    parts: Any = {part: OmegaConf.to_container(config[part], resolve=True) for part in NETWORK}
    detector = config.cell.detector
    return FEATURES / f"{detector}-{features_identity(detector, parts)}.pt"


def write_features(checkpoint: Path, path: Path) -> None:
    """Write the weights that a pre-training evaluates and the description of its detector, without the state of the optimiser.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    state = load_checkpoint(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {name: value for name, value in state["about"].items() if name != "config"}
    torch.save(
        {"format": FORMAT, "about": about, "model": evaluated_weights(state), "step": state["step"]}, path
    )


def features_identity(detector: str, parts: Mapping[str, Any]) -> str:
    """Digest of everything that affects the features: the network, in resolved ``parts``, and its training by ``experiment=pretrain``."""
    return _identity(detector, json.dumps(parts, sort_keys=True))


@lru_cache
def _identity(detector: str, parts: str) -> str:
    config = compose_cell(detector=detector, loss="fl", overrides=["experiment=pretrain"])
    decisive: Any = OmegaConf.to_container(config, resolve=True)
    for name in ("paths", "logger", "dataset", *NETWORK):
        del decisive[name]
    for name in ("device", *LOCAL):
        del decisive["trainer"][name]
    folder: Any = OmegaConf.to_container(config.dataset, resolve=True)["folder"]
    text = json.dumps([decisive, {name: folder[name] for name in GENERATED}, parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def pretraining_config(config: DictConfig) -> DictConfig:
    """The run that pre-trains this detector's features: same detector and backbone, focal loss, other classes, seed 0."""
    cell = config.cell
    pretraining = compose_cell(detector=cell.detector, loss="fl", overrides=["experiment=pretrain"])
    with open_dict(pretraining):
        for part in (*NETWORK, "paths"):
            pretraining[part] = config[part]
        pretraining.logger = OmegaConf.create({"_target_": "afl.tracking.NullTracker", "_partial_": True})
        for name in ("device", *LOCAL):
            pretraining.trainer[name] = config.trainer[name]
    return pretraining
