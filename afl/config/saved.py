"""The config that a run directory keeps, and changes to it.

``config.yaml`` has every value, for readers. ``config.unresolved.yaml`` has the same settings with the references between them
(``annotations: ${dataset.root}/train.json``): a change to one setting reaches all that take their value from it, as it does at
training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from afl.config.overrides import CONF, ConfigError, apply_overrides

CONFIG, UNRESOLVED = "config.yaml", "config.unresolved.yaml"
# A reference to another setting; `oc.select` is one with a default.
_REFERENCE = re.compile(r"\$\{([\w.]+)\}|\$\{oc\.select:([\w.]+)[^}]*\}")
_RESOLVER = re.compile(r"\$\{(?!oc\.select:)[^}]*:")


def save_config(config: DictConfig) -> dict[str, str]:
    """The text of both files of a run directory, by file name.

    References to anything but other settings (Hydra's choices, the environment) become their values.
    """
    plain = OmegaConf.to_container(config, resolve=True)
    kept = _settled(OmegaConf.to_container(config, resolve=False), plain)
    return {
        name: OmegaConf.to_yaml(OmegaConf.create(one)) for name, one in ((CONFIG, plain), (UNRESOLVED, kept))
    }


def _settled(raw: Any, plain: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _settled(value, plain[key]) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_settled(*pair) for pair in zip(raw, plain, strict=True)]
    return plain if isinstance(raw, str) and _RESOLVER.search(raw) else raw


def read_config(folder: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of the run in ``folder`` with changes, all values resolved.

    Args:
        overrides: ``NAME=VALUE`` as on the command line, by existing names; each gives what it gives at training.

    Raises:
        ConfigError: not a run directory, a setting that does not exist, a value of another kind than the setting's, or a run
            without ``config.unresolved.yaml`` (of an older version) and a setting that others take their value from.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} has no {CONFIG}: it is not a run directory of scripts.train")
    resolved = _load(folder / CONFIG)
    if (folder / UNRESOLVED).is_file():
        config = _load(folder / UNRESOLVED)
        _refuse_resolvers(config, folder / UNRESOLVED)
        if _resolved(config, folder / UNRESOLVED) != resolved:
            raise ConfigError(
                f"{folder}: {CONFIG} and {UNRESOLVED} differ, so one of them was edited; undo that, and give the change on the "
                "command line"
            )
    else:
        config = resolved
        for override in overrides:
            _refuse_source(override.partition("=")[0].lstrip("+"), config, folder)
    apply_overrides(config, overrides)
    return _resolved(config, folder / CONFIG)


def _load(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(path)
    except (OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} is damaged: it holds no settings")
    return config


def _resolved(config: DictConfig, path: Path) -> DictConfig:
    try:
        return OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())[:200]}") from None


def _refuse_resolvers(config: DictConfig, path: Path) -> None:
    for name, value in _leaves(OmegaConf.to_container(config, resolve=False)):
        if isinstance(value, str) and _RESOLVER.search(value):
            raise ConfigError(f"{path}: {name} is {value!r}; a saved config refers to its own settings only")


def _refuse_source(key: str, config: DictConfig, folder: Path) -> None:
    """Refuse a change that would not reach the settings that take their value from ``key``."""
    plain = OmegaConf.to_container(config, resolve=True)
    present = {name for name, _ in _leaves(plain)} | set(_branches(plain))
    followers = sorted(
        name
        for name, source in references(CONF).items()
        if name in present
        and (source == key or f"{source}.".startswith(f"{key}.") or f"{key}.".startswith(f"{source}."))
    )
    if followers:
        raise ConfigError(
            f"{folder} was trained by an older version, which kept no references between settings: {key} alone would change "
            f"nothing. Set what takes its value from it: {', '.join(f'{name}=...' for name in followers)}"
        )


def references(conf: Path) -> dict[str, str]:
    """Which setting takes its value from which, by the files of ``conf``."""
    found = {}
    for path in sorted(conf.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        parts = path.relative_to(conf).parts
        package = parts[0] if len(parts) > 1 and "@package _global_" not in text else ""
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            continue
        content.pop("defaults", None)
        for name, value in _leaves(content, package):
            for match in _REFERENCE.finditer(value) if isinstance(value, str) else ():
                found[name] = match[1] or match[2]
    return found


def _leaves(content: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(content, Mapping):
        pairs = content.items()
    elif isinstance(content, list):
        pairs = enumerate(content)
    else:
        return [(name, content)]
    return [leaf for key, value in pairs for leaf in _leaves(value, f"{name}.{key}" if name else str(key))]


def _branches(content: Any, name: str = "") -> list[str]:
    if not isinstance(content, Mapping):
        return []
    names = {key: f"{name}.{key}" if name else str(key) for key in content}
    return [*names.values(), *(one for key, value in content.items() for one in _branches(value, names[key]))]
