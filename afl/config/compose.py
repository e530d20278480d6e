"""Composing a config outside of Hydra's own command line."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from afl.config.overrides import CONF


def composed(
    overrides: Sequence[str], config_name: str | None = "config", *, with_hydra: bool = False
) -> DictConfig:
    """The config ``conf/CONFIG_NAME.yaml`` with overrides as Hydra reads them, also inside a command that Hydra started.

    Args:
        config_name: None for the overrides alone, such as ``+loss=fl``.
        with_hydra: include the settings of Hydra itself, under ``hydra``.
    """
    if GlobalHydra.instance().is_initialized():
        return compose(config_name, overrides=list(overrides), return_hydra_config=with_hydra)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config_name, overrides=list(overrides), return_hydra_config=with_hydra)
