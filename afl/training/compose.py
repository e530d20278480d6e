"""Composes the config of a run in Python, without Hydra's command line."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, open_dict

CONF = Path(__file__).resolve().parents[2] / "conf"


def compose_cell(*, detector: str, loss: str, overrides: list[str]) -> DictConfig:
    """The config that ``python -m scripts.train detector=... loss=... OVERRIDES`` would run."""
    arguments = [f"detector={detector}", f"loss={loss}", *overrides]
    if GlobalHydra.instance().is_initialized():
        config = compose("config", overrides=arguments)
    else:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", overrides=arguments)
    with open_dict(config):
        # On the command line these come from Hydra's record of the choices, which a composed config lacks.
        config.cell = {"detector": detector, "loss": loss, "dataset": config.dataset.name}
    return config
