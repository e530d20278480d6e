"""Overrides ``NAME=VALUE``, with the same syntax in all commands.

Values follow Hydra's grammar, with one exception: a setting that holds text takes the text exactly as typed, including characters
with a meaning in Hydra's grammar (spaces, brackets, ``= ( ) , # ' & ; ! ~``, letters outside ASCII, numbers). A leading ``~``
means the home folder. A value of the wrong kind is rejected.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF = Path(__file__).resolve().parents[2] / "conf"
# A setting with this default also accepts true and false.
AUTO = "auto"
IMAGE_SIZE = "dataset.image_size"
SEVERAL = "names several values; only a sweep takes several: scripts.train -m"
_ASSIGNMENT = re.compile(r"(\+{0,2})([A-Za-z_][\w./@:-]*)=(.*)", re.DOTALL)


class ConfigError(ValueError):
    """A config cannot be run; the message says how to fix it."""


def quoted(value: Any) -> str:
    """Quote a value, or a list or dict of values, so that an override restores it exactly.

    Use it to build overrides: ``f"paths.output={quoted(folder)}"``.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | DictConfig):
        return "{" + ",".join(f"{str(key)}:{quoted(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple | ListConfig):
        return "[" + ",".join(map(quoted, value)) + "]"
    if isinstance(value, int | float):
        return str(value)
    text = str(value)
    plain = re.fullmatch(r"[\w./:-]+", text, re.ASCII) and _parse("key", text)
    return text if plain and plain.value() == text else QuotedString(text, Quote.single).with_quotes()


def hydra_override(argument: str, config: DictConfig, *, sweep: bool = False) -> str:
    """Translate an argument of the command line into Hydra's grammar.

    Args:
        argument: ``NAME=VALUE`` or ``+NAME=VALUE``; arguments of other forms are returned unchanged.
        config: the config before the change, which determines the kind of value of ``NAME``.
        sweep: commas separate the values of a sweep.

    Raises:
        ConfigError: the value is of the wrong kind, or cannot be read.
    """
    found = _ASSIGNMENT.fullmatch(argument)
    if found is None:
        return argument
    sign, key, text = found.groups()
    default = _default(config, key)
    parsed = _parse(key, text)
    if isinstance(default, str):
        value = _text(text, parsed, default, sweep)
    elif parsed is not None:
        if sweep or not parsed.is_sweep_override():
            _check_kind(key, text, parsed, default)
            value = _with_home_folder(text, parsed)
        elif isinstance(parsed._value, ChoiceSweep) and default is None:
            value = quoted(os.path.expanduser(text))
        elif isinstance(default, bool | int | float):
            raise ConfigError(f"{key}={text} {SEVERAL}")
        else:
            raise ConfigError(_wrong_kind(key, text, default))
    elif default is None and not text.lstrip().startswith(("[", "{")):
        value = quoted(os.path.expanduser(text))
    elif isinstance(default, ListConfig) and _arguments(text):
        value = quoted(_arguments(text))
    else:
        raise ConfigError(_unreadable(key, text, default))
    return f"{sign}{key}={value}"


def apply_overrides(config: DictConfig, arguments: Sequence[str]) -> None:
    """Apply overrides to ``config``, in place and in order. ``+NAME=VALUE`` also adds a setting to an existing group.

    Raises:
        ConfigError: an argument does not have the form ``NAME=VALUE``, the setting does not exist or is a group, or the value is
            of the wrong kind.
    """
    OmegaConf.set_struct(config, True)
    for argument in arguments:
        found = _ASSIGNMENT.fullmatch(argument)
        if found is None:
            raise ConfigError(f"{argument!r} does not have the form NAME=VALUE")
        key = found[2]
        unknown = unknown_setting(key, config)
        added = bool(unknown and found[1]) and OmegaConf.is_dict(
            OmegaConf.select(config, key.rpartition(".")[0])
        )
        problem = None if added else unknown or without_effect(key, config, arguments)
        if problem:
            raise ConfigError(problem)
        (parsed,) = OverridesParser.create().parse_overrides([hydra_override(argument.lstrip("+"), config)])
        try:
            OmegaConf.update(config, key, parsed.value(), merge=True, force_add=added)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{key} cannot be set: {str(error).splitlines()[0]}") from None


def unknown_setting(key: str, config: DictConfig) -> str | None:
    """A one-line error with the nearest name, or else the names of the same group, if ``config`` has no setting ``key``; or None."""
    parent, _, name = key.rpartition(".")
    try:
        node = OmegaConf.select(config, parent) if parent else config
    except OmegaConfBaseException:
        node = None
    if isinstance(node, DictConfig) and name in node.keys():  # noqa: SIM118  `in node` is false for a missing value
        return None
    if isinstance(node, ListConfig) and name.isdigit() and int(name) < len(node):
        return None
    known = dotted_names(OmegaConf.to_container(config, resolve=False))
    # The right name in the wrong place, or a misspelled name.
    elsewhere = [one for one in known if one.rpartition(".")[2] == name]
    inside = [one for one in known if one.rpartition(".")[0] == parent]
    # A shared group name would make any two settings of the group near.
    group = f"{parent}." if parent and inside and not elsewhere else ""
    candidates = elsewhere or [one.removeprefix(group) for one in known if one.startswith(group)]
    near = difflib.get_close_matches(
        key.removeprefix(group), candidates, n=1, cutoff=0.0 if elsewhere else 0.6
    )
    if near:
        return f"There is no {key}. Did you mean {group}{near[0]}?"
    return f"There is no {key}. There are: {', '.join(inside or map(str, config))}"


def without_effect(key: str, config: DictConfig, arguments: Sequence[str]) -> str | None:
    """A one-line error if ``key`` is ``dataset.image_size`` and has no effect on the detector and data set of ``config``.

    The published transforms of some data sets draw the short side from a range for the dense detectors, which a single size
    cannot describe.

    Args:
        key: the setting that is changed.
        config: the config before the change.
        arguments: all overrides; one of them may refer to this setting.
    """
    if key != IMAGE_SIZE or any(f"${{{IMAGE_SIZE}}}" in argument for argument in arguments):
        return None
    family = config.get("family")

    def dataset(size: int) -> dict:
        changed = copy.deepcopy(config)
        OmegaConf.update(changed, key, size)
        content: Any = OmegaConf.to_container(changed.dataset, resolve=True)
        transforms = [content.pop(name, {}).get(family) for name in ("train_transform", "eval_transform")]
        return {**content, "image_size": None, "transforms": transforms}

    try:
        if dataset(1) != dataset(2):
            return None
    except OmegaConfBaseException:  # reported when the config is composed
        return None
    if config.get("subset"):
        return f"{key} has no effect with this experiment: set subset.image_size"
    return (
        f"{key} has no effect on this detector with dataset={config.dataset.name}: set "
        f"dataset.train_transform.{family}.short_sides and dataset.eval_transform.{family}.short_side, or add experiment=small, "
        "which resizes images to it for all detectors"
    )


def dotted_names(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The names of all groups and settings in a nested dictionary."""
    found = []
    for key, value in config.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            found += dotted_names(value, f"{prefix}{key}.")
    return found


def _default(config: DictConfig, key: str) -> Any:
    """The value of a setting; None if it has none, or if only a command can resolve it."""
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None


def _parse(key: str, text: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException:
        return None


def _arguments(text: str) -> list[str] | None:
    """The elements of a list of arguments such as ``[hydra/launcher=slurm,seed=1]``, which Hydra reads in quotes only; None for
    other text."""
    found = re.fullmatch(r"\[([^\[\]{}()'\"\s]*=[^\[\]{}()'\"\s]*)\]", text.strip())
    return found[1].split(",") if found else None


def _text(text: str, parsed: Override | None, default: str, sweep: bool) -> str:
    """The value of a setting that holds text."""
    if parsed is not None:
        if sweep and parsed.is_sweep_override():
            return text
        value = parsed.value()
        if value is None or isinstance(value, str) or (isinstance(value, bool) and default == AUTO):
            return _with_home_folder(text, parsed)
    return quoted(os.path.expanduser(text))


def _with_home_folder(text: str, parsed: Override) -> str:
    """The value, with a leading ``~`` replaced by the home folder."""
    value = None if parsed.is_sweep_override() else parsed.value()
    if isinstance(value, str) and value.startswith("~"):
        return quoted(os.path.expanduser(value))
    return text


def _check_kind(key: str, text: str, parsed: Override, default: Any) -> None:
    if parsed.is_sweep_override():
        if not isinstance(parsed._value, ChoiceSweep):
            return  # a range or an interval, of numbers
        values = [one.text if isinstance(one, QuotedString) else one for one in parsed._value.list]
    else:
        values = [parsed.value()]
    for value in values:
        if value is None or (isinstance(value, str) and "${" in value):
            continue
        if isinstance(default, bool):
            fits = isinstance(value, bool) or value == AUTO
        elif isinstance(default, int | float):
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        elif isinstance(default, ListConfig):
            fits = isinstance(value, list)
        elif isinstance(default, DictConfig):
            fits = isinstance(value, dict)
        else:
            fits = True
        if not fits:
            raise ConfigError(_wrong_kind(key, text, default))


def _wrong_kind(key: str, text: str, default: Any) -> str:
    if isinstance(default, DictConfig):
        first = str(next((name for name in default if name != "_target_"), "NAME"))
        return f"{key}={text}: {key} is a group of settings; set one of them, for example {key}.{first}=..."
    if isinstance(default, ListConfig):
        shown = quoted(list(OmegaConf.to_container(default))[:3]) if default else "[one,two]"
        return f"{key} is {text!r}; it needs a list such as {shown}"
    if isinstance(default, bool):
        return f"{key} is {text!r}; it needs true or false"
    if isinstance(default, int | float):
        return f"{key} is {text!r}; it needs a number such as {default}"
    return f"{key}={text} names several values; for one text write {shlex.quote(f'{key}={_double(text)}')}, for a sweep add -m"


def _unreadable(key: str, text: str, default: Any) -> str:
    if isinstance(default, ListConfig | DictConfig) or text.lstrip().startswith(("[", "{")):
        kind = "dict" if text.lstrip().startswith("{") else "list"
        form = '{name:"text"}' if kind == "dict" else '["text","text"]'
        return (
            f"{key}={text} cannot be read as a {kind}; put every text with special characters in quotes: "
            f"{shlex.quote(f'{key}={form}')}"
        )
    return _wrong_kind(key, text, default)


def _double(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes()
