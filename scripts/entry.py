"""Starting a Hydra command so that a typo gets one clear line instead of a stack trace."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

CONF = Path(__file__).resolve().parent.parent / "conf"


def run_hydra(task: Callable[[DictConfig], None], config_name: str = "config") -> None:
    """Run ``task`` with the config composed from the command line.

    A group member that does not exist is refused before Hydra starts, with the nearest one that does; for a key that does
    not exist the nearest key is named after Hydra's own message.
    """
    problem = unknown_choice(sys.argv[1:])
    if problem:
        sys.exit(problem)
    entry = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task)
    try:
        entry()
    except SystemExit as stop:
        hint = unknown_key(sys.argv[1:], config_name) if stop.code not in (0, None) else None
        if hint:
            print(hint, file=sys.stderr)
        raise


def unknown_choice(arguments: list[str]) -> str | None:
    """One line about the first ``group=member`` whose member does not exist, or None."""
    for argument in arguments:
        found = re.fullmatch(r"\+?([a-z_/]+)=([\w,/]+)", argument)
        # Hydra's own groups have members in its plugins as well.
        if not found or found[1].startswith("hydra/") or not (CONF / found[1]).is_dir():
            continue
        folder = CONF / found[1]
        known = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
        for member in found[2].split(","):
            if member not in known and member != "null":
                near = difflib.get_close_matches(member, known, n=1, cutoff=0.4)
                meant = f" Did you mean {found[1]}={near[0]}?" if near else ""
                return f"There is no {found[1]} {member!r}.{meant} There are: {', '.join(known)}"
    return None


def unknown_key(arguments: list[str], config_name: str) -> str | None:
    """One line about the first ``a.b=value`` whose key does not exist in the config, or None."""
    keys = [found[1] for a in arguments if (found := re.match(r"([\w.]+)=", a))]
    groups = [
        a for a in arguments if "=" in a and (CONF / a.lstrip("+").split("=")[0]).is_dir() and "," not in a
    ]
    try:
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(config_name, overrides=groups)
    except Exception:  # the hint is a courtesy: Hydra has already said what is wrong
        return None
    known = list(_keys(OmegaConf.to_container(config, resolve=False)))
    for key in keys:
        if key in known or (CONF / key).is_dir() or key.startswith("hydra"):
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        if near:
            return f"There is no {key}. Did you mean {near[0]}?"
    return None


def _keys(config: dict, prefix: str = "") -> list[str]:
    found = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        found.append(name)
        if isinstance(value, dict):
            found += _keys(value, f"{name}.")
    return found


def options_of(arguments: list[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``name=value`` arguments over ``defaults``, as plain values.

    A value must be of its default's kind: true or false, a whole number, a number, a list. What has a text or None for default may be
    anything; a text stays as it was typed, whatever it looks like.

    Raises:
        ValueError: an argument is not of that form, names something that is not among the defaults, or is of another kind.
    """
    options = dict(defaults)
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r} is not of the form NAME=VALUE")
        if name not in defaults:
            near = difflib.get_close_matches(name, defaults, n=1, cutoff=0.4)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"there is no option {name!r}.{meant} There are: {', '.join(defaults)}")
        options[name] = _value(name, text, defaults[name])
    return options


def _value(name: str, text: str, default: Any) -> Any:
    if isinstance(default, str):
        return text
    try:
        (value,) = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"])).values()
    except (YAMLError, OmegaConfBaseException):  # no YAML, such as *.jpg
        value = text
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if default is None:
        return text if number else value
    if isinstance(default, bool):
        kind, fits = "true or false", isinstance(value, bool)
    elif isinstance(default, list):
        kind, fits = "a list such as [one,two]", isinstance(value, list)
    elif isinstance(default, int):
        kind, fits = "a whole number", number and isinstance(value, int)
    else:
        kind, fits = "a number", number
    if not fits:
        raise ValueError(f"{name} is {text!r}; it is {kind}")
    return value


def asks_for_help(arguments: list[str], document: str) -> bool:
    """Whether somebody asks what a command can do; ``document``, which says it, is then printed."""
    asked = any(argument in ("-h", "--help", "help") for argument in arguments)
    if asked:
        print(document.strip())
    return asked


def quiet_libraries() -> None:
    """Keep libraries' notes out of a run's output; warnings and errors stay."""
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("matplotlib", "git", "hydra"):
        logging.getLogger(name).setLevel(logging.WARNING)
