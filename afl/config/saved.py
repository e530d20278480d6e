"""Saves the config of a run in its directory, and reads it with overrides.

``config.yaml`` has all values, for readers. ``config.unresolved.yaml`` has the same settings with the references between them
(``annotations: ${dataset.root}/train.json``). An override of one setting therefore also changes the settings that refer to it, as
in training.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from afl.config.choices import did_you_mean
from afl.config.overrides import ConfigError, apply_overrides

CONFIG, UNRESOLVED = "config.yaml", "config.unresolved.yaml"
# `oc.select` refers to another setting, with a default.
_RESOLVER = re.compile(r"\$\{(?!oc\.select:)[^}]*:")


def save_config(config: DictConfig) -> dict[str, str]:
    """The text of both config files of a run directory, by file name.

    References to anything other than settings (Hydra's choices, the environment) are replaced by their values.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    kept = _without_resolvers(OmegaConf.to_container(config, resolve=False), plain)
    return {
        name: OmegaConf.to_yaml(OmegaConf.create(one)) for name, one in ((CONFIG, plain), (UNRESOLVED, kept))
    }


def _without_resolvers(raw: Any, plain: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _without_resolvers(value, plain[key]) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_without_resolvers(*pair) for pair in zip(raw, plain, strict=True)]
    return plain if isinstance(raw, str) and _RESOLVER.search(raw) else raw


def read_config(folder: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Read the config of the run in ``folder``, apply overrides, and resolve all values.

    Args:
        overrides: ``NAME=VALUE`` as on the command line, for existing settings; they have the same effect as in training.

    Raises:
        ConfigError: ``folder`` is not a run directory, a setting does not exist, a value is of the wrong kind, or there are
            overrides, but no ``config.unresolved.yaml``.
    """
    if not folder.exists():
        raise ConfigError(missing_run(folder))
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} has no {CONFIG}: it is not a run directory of scripts.train")
    resolved = _load(folder / CONFIG)
    if (folder / UNRESOLVED).is_file():
        config = _load(folder / UNRESOLVED)
        _refuse_resolvers(config, folder / UNRESOLVED)
        if _resolved(config, folder / UNRESOLVED) != resolved:
            raise ConfigError(
                f"{folder}: {CONFIG} and {UNRESOLVED} differ, so one of them was edited; undo the edit, and give the change on the "
                "command line"
            )
    elif overrides:
        raise ConfigError(
            f"{folder} has no {UNRESOLVED}, so its settings cannot be changed; train the run again"
        )
    else:
        config = resolved
    apply_overrides(config, overrides)
    return _resolved(config, folder / CONFIG)


def missing_run(folder: Path) -> str:
    """A one-line error about a run that does not exist, with the nearest run directory next to it."""
    runs = (path.parent.name for path in folder.parent.glob(f"*/{CONFIG}"))
    meant = did_you_mean(folder.name, runs, f"{folder.parent}{os.sep}")
    return f"{folder} does not exist.{meant or ' Name the directory of a run, such as outputs/NAME.'}"


def _load(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(path)
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} is damaged: it contains no settings")
    return config


def _resolved(config: DictConfig, path: Path) -> DictConfig:
    try:
        return DictConfig(OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())[:200]}") from None


def _refuse_resolvers(config: DictConfig, path: Path) -> None:
    for name, value in _leaves(OmegaConf.to_container(config, resolve=False)):
        if isinstance(value, str) and _RESOLVER.search(value):
            raise ConfigError(
                f"{path}: {name} is {value!r}; a saved config may only refer to its own settings"
            )


def _leaves(content: Any, name: str = "") -> list[tuple[str, Any]]:
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(content, Mapping):
        pairs = content.items()
    elif isinstance(content, list):
        pairs = enumerate(content)
    else:
        return [(name, content)]
    return [leaf for key, value in pairs for leaf in _leaves(value, f"{name}.{key}" if name else str(key))]
