"""Composes the config of a run in Python, without Hydra's command line."""

from __future__ import annotations

from omegaconf import DictConfig, open_dict

from afl.config import composed


def compose_cell(*, detector: str, loss: str, overrides: list[str]) -> DictConfig:
    """The config that ``python -m scripts.train detector=... loss=... OVERRIDES`` would run."""
    config = composed([f"detector={detector}", f"loss={loss}", *overrides])
    with open_dict(config):
        # On the command line these come from Hydra's record of the choices, which a composed config lacks.
        config.cell = {"detector": detector, "loss": loss, "dataset": config.dataset.name}
    return config
