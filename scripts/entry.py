"""Reads the arguments of every command before heavy modules are imported: help, options, overrides, nearest names."""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hydra
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from afl.config import (
    CONF,
    IMAGE_SIZE,
    SEVERAL,
    ConfigError,
    composed,
    did_you_mean,
    hydra_override,
    is_group,
    members,
    unknown_choice,
    unknown_setting,
    without_effect,
)

HELP = ("-h", "--help", "help")
# Hydra's own flags; with `True`, the next argument belongs to the flag.
FLAGS = {
    "-m": False, "--multirun": False, "-r": False, "--run": False, "--resolve": False, "--hydra-help": False,
    "--version": False, "-c": True, "--cfg": True, "-p": True, "--package": True, "-i": True, "--info": True,
    "-sc": False, "--shell-completion": False, "--experimental-rerun": True,
}  # fmt: skip
# Ways to name other folders and files of configs. The commands check their arguments against this project's.
ELSEWHERE = ("-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir", "hydra.searchpath")
LAUNCHERS = ("joblib", "slurm")
SLURM = {"hydra/launcher=slurm", "hydra/launcher=submitit_slurm"}
FULL_ERROR = "HYDRA_FULL_ERROR"
# Hydra accepts one of them.
MODES = (
    "-m", "--multirun", "-r", "--run", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion", "--hydra-help", "--version",
)  # fmt: skip
KINDS = {bool: "true or false", list: "a list", int: "a whole number", float: "a number"}


def run_hydra(task: Callable[[DictConfig], None], config_name: str = "config") -> None:
    """Run ``task`` with the config composed from the command line.

    ``--help`` prints the docstring of the task's module and the config groups. A mistake in the arguments ends the program with
    one line before Hydra starts.
    """
    arguments = sys.argv[1:]
    if any(argument in HELP for argument in arguments):
        print(f"{help_text(sys.modules[task.__module__].__doc__)}\n\n{groups_help(config_name)}")
        return
    try:
        sys.argv[1:] = checked(arguments, config_name)
    except ConfigError as error:
        sys.exit(str(error))
    command = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task)
    if SLURM.isdisjoint(arguments) or FULL_ERROR in os.environ:
        command()
        return
    # With this variable Hydra passes an error of the launcher on; without it, Hydra prints a trace and ends the program.
    os.environ[FULL_ERROR] = "1"
    try:
        command()
    except Exception as error:
        sys.exit(message_of_slurm(error))


def compose_config(arguments: Sequence[str], config_name: str = "config") -> DictConfig:
    """The config of a command that takes the same overrides as ``scripts.train``.

    Raises:
        ConfigError: a mistake in the arguments, in one line.
    """
    overrides = checked(arguments, config_name)
    try:
        return composed(overrides, config_name)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).splitlines()[0]) from None


def checked(arguments: Sequence[str], config_name: str) -> list[str]:
    """Check the arguments, and translate them into Hydra's grammar.

    Raises:
        ConfigError: an argument does not have the form ``NAME=VALUE``, names a group member or a setting that does not exist, has a
            value of the wrong kind, or has no effect.
    """
    sweep = "-m" in arguments or "--multirun" in arguments
    problem = (
        elsewhere(arguments)
        or misplaced(arguments)
        or several_modes(arguments)
        or unknown_choice(arguments)
        or without_slurm(arguments)
    )
    if not problem and not sweep:
        problem = several_choices(arguments)
    if problem:
        raise ConfigError(problem)
    arguments = _without_empty_choices(arguments, config_name)
    choices = [argument for argument in arguments if _is_choice(argument)]
    base = _base(choices, config_name)
    if base is None:  # Hydra says why
        return list(arguments)
    if problem := _refused_by_hydra(arguments, config_name):
        raise ConfigError(problem)
    found = []
    for argument in arguments:
        key = _key(argument)
        if key is None or _is_choice(argument):
            found.append(argument)
            continue
        if not argument.startswith("+") and not (sweep and any("," in choice for choice in choices)):
            problem = unknown_setting(key, base) or without_effect(key, base, arguments)
            if problem:
                raise ConfigError(problem)
        elif key == IMAGE_SIZE:
            for cell in _cells(choices, config_name):
                if problem := without_effect(key, cell, arguments):
                    raise ConfigError(problem)
        found.append(hydra_override(argument, base, sweep=sweep))
    return found


def _without_empty_choices(arguments: Sequence[str], config_name: str) -> list[str]:
    """The arguments without overrides such as ``experiment=null``, which name the default and which Hydra does not accept."""
    defaults = _group_defaults(config_name)
    kept = []
    for argument in arguments:
        group, _, member = argument.partition("=")
        if group not in defaults or member != "null":
            kept.append(argument)
        elif defaults[group] is not None:
            raise ConfigError(f"There is no {group} 'null'. There are: {', '.join(members(group))}")
    return kept


def _group_defaults(config_name: str) -> dict[str, str | None]:
    """The member of each group that a config chooses, or None."""
    entries = yaml.safe_load((CONF / f"{config_name}.yaml").read_text(encoding="utf-8"))["defaults"]
    named = {group: member for entry in entries if isinstance(entry, dict) for group, member in entry.items()}
    return {group: member for group, member in named.items() if " " not in group and is_group(group)}


def _cells(choices: Sequence[str], config_name: str) -> list[DictConfig]:
    """The configs of a sweep's detectors, data sets and experiments, with the first member of every other group."""
    values = []
    for choice in choices:
        group, _, listed = choice.partition("=")
        swept = group in ("detector", "dataset", "experiment")
        values.append([f"{group}={one}" for one in listed.split(",")[: None if swept else 1]])
    bases = (_base(combination, config_name) for combination in itertools.product(*values))
    return [base for base in bases if base is not None]


def _base(choices: Sequence[str], config_name: str) -> DictConfig | None:
    """The config of the chosen group members (of a sweep, the first ones) before any setting is changed."""
    first = [choice.split(",")[0] for choice in choices if not choice.lstrip("+").startswith("hydra")]
    try:
        return composed(first, config_name)
    except (HydraException, OmegaConfBaseException):
        return None


def _refused_by_hydra(arguments: Sequence[str], config_name: str) -> str | None:
    """One line about the first setting of Hydra, such as a launcher, that does not exist or has a value of the wrong kind, or None."""
    choices = [argument for argument in arguments if argument.startswith("hydra/") and "," not in argument]
    settings = [argument for argument in arguments if argument.startswith("hydra.") and "=" in argument]
    if not choices and not settings:
        return None
    try:
        config = composed(choices, config_name, with_hydra=True)
    except MissingConfigException as error:
        group, _, member = str(error.missing_cfg_file).rpartition("/")
        options = error.options or ()
        meant = did_you_mean(member, options)
        return f"There is no {group} {member!r}.{meant} There are: {', '.join(options)}"
    except HydraException as error:
        return str(error).splitlines()[0]
    for argument in settings:
        key = argument.partition("=")[0]
        if problem := unknown_setting(key, config):
            return problem if choices else _missing_launcher(key, config_name) or problem
        (parsed,) = OverridesParser.create().parse_overrides([hydra_override(argument, config, sweep=True)])
        if not parsed.is_sweep_override():  # Hydra refuses a sweep over its own settings
            try:
                OmegaConf.update(config, key, parsed.value())
            except OmegaConfBaseException as error:
                return f"{key} cannot be set: {str(error).splitlines()[0]}"
    return None


def _missing_launcher(key: str, config_name: str) -> str | None:
    """One line if ``key`` is a setting of a launcher that the command does not choose, or None."""
    for name in LAUNCHERS:
        config = composed([f"hydra/launcher={name}"], config_name, with_hydra=True)
        if unknown_setting(key, config) is None:
            return f"{key} needs a launcher: add hydra/launcher={name}"
    return None


def _key(argument: str) -> str | None:
    found = re.match(r"\+{0,2}([A-Za-z_][\w./@:-]*)=", argument)
    return found[1] if found else None


def _is_choice(argument: str) -> bool:
    """Whether an argument chooses the member of a config group."""
    key = _key(argument)
    group = key.split("@")[0] if key else ""
    return bool(group) and (group.startswith(("hydra/", "hydra.")) or is_group(group))


def elsewhere(arguments: Sequence[str]) -> str | None:
    """One line about the first argument that names another place of configs, or None."""
    for argument in arguments:
        flag = argument.lstrip("+").split("=")[0]
        if flag in ELSEWHERE:
            return f"{flag} cannot be used: configs are read from {CONF} only; copy your file there, for example to loss/NAME.yaml"
    return None


def message_of_slurm(error: Exception) -> str:
    """The text of an error of a sweep with Slurm: the reason of ``sbatch``, Hydra's sentence, or submitit's report on a job.

    Raises:
        Exception: ``error`` is not expected.
    """
    from submitit.core.utils import FailedSubmissionError, UncompletedJobError

    if isinstance(error.__cause__, subprocess.CalledProcessError):
        reasons = "; ".join(line.removeprefix("sbatch: error: ") for line in str(error).split("\n") if line)
        return (
            f"sbatch refuses the jobs: {reasons}. Change hydra.launcher.partition, account, timeout_min, ... on the command line or in "
            "conf/hydra/launcher/slurm.yaml; sinfo lists the partitions"
        )
    if not isinstance(error, CompactHydraException | FailedSubmissionError | UncompletedJobError):
        raise error
    return (
        f"{error}\n{error.__cause__}" if isinstance(error.__cause__, OmegaConfBaseException) else str(error)
    )


def without_slurm(arguments: Sequence[str]) -> str | None:
    """One line if a sweep needs Slurm and this machine does not have it, or None."""
    for argument in arguments:
        if argument in SLURM and not shutil.which("srun"):
            return f"{argument}: this machine has no Slurm (there is no command srun); without it, write hydra/launcher=joblib"
    return None


def several_choices(arguments: Sequence[str]) -> str | None:
    """One line about the first group with several members, or None. Only a sweep takes several."""
    for argument in arguments:
        if _is_choice(argument) and "," in argument and not argument.startswith("hydra"):
            return f"{argument} {SEVERAL}"
    return None


def misplaced(arguments: Sequence[str]) -> str | None:
    """One line about the first argument that is neither ``NAME=VALUE`` nor a flag of Hydra, or None."""
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        flag = argument.split("=")[0]
        if flag in FLAGS:
            if FLAGS[flag] and "=" not in argument:
                rest[:1] = []
        elif argument.startswith("-") or "=" not in argument and not argument.startswith("~"):
            return not_assigned(argument, rest)
    return None


def several_modes(arguments: Sequence[str]) -> str | None:
    """One line about flags of Hydra of which only one is accepted, or None."""
    given = [argument for argument in arguments if argument.split("=")[0] in MODES]
    return f"{' and '.join(given)} cannot be used together; leave out one of them" if len(given) > 1 else None


def not_assigned(argument: str, following: Sequence[str]) -> str:
    """One line about an argument that is not ``NAME=VALUE``, with the intended form."""
    name, equals, value = argument.lstrip("-").partition("=")
    if not equals:
        value = following[0] if following and "=" not in following[0] and following[0][:1] != "-" else "VALUE"
    return f"{argument!r} does not have the form NAME=VALUE; write {name}={value}"


def groups_help(config_name: str) -> str:
    """The groups of a config and their members, one group a line, as wide as the terminal."""
    lines = [
        textwrap.fill(
            f"{group}=" + " | ".join(members(group)),
            width=_width(), initial_indent="    ", subsequent_indent=" " * 8, break_on_hyphens=False,
        )
        for group in _group_defaults(config_name)
        if members(group)
    ]  # fmt: skip
    return "\n".join(
        [
            "Groups:", *lines, "",
            _filled(
                "Every value of the config can be set as NAME=VALUE; --cfg job prints all of them, -m runs a sweep over values "
                "separated by commas."
            ),
        ]
    )  # fmt: skip


def options_of(arguments: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Read ``NAME=VALUE`` arguments as plain values, with ``defaults`` for the others.

    A value must have the kind of its default: true or false, an integer, a number, a list. A type as default means None if the
    option is not given. If the default is text or None, the value is the text as typed; empty text with the default None is None,
    and an error with another default. A leading ``~`` means the home folder.

    Raises:
        ValueError: an argument does not have this form, names an unknown option, or has a value of the wrong kind.
    """
    options = {name: None if isinstance(default, type) else default for name, default in defaults.items()}
    for i, argument in enumerate(arguments):
        name, equals, text = argument.partition("=")
        if not equals or argument.startswith("-"):
            raise ValueError(not_assigned(argument, arguments[i + 1 :]))
        if name not in defaults:
            meant = did_you_mean(name, defaults)
            raise ValueError(f"there is no option {name!r}.{meant} There are: {', '.join(defaults)}")
        options[name] = _value(name, text, defaults[name])
    return options


def own_options(arguments: Sequence[str], defaults: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options of a command that also takes overrides: (options, the arguments that are overrides)."""
    own = [argument for argument in arguments if argument.partition("=")[0] in defaults]
    return options_of(own, defaults), [argument for argument in arguments if argument not in own]


def _value(name: str, text: str, default: Any) -> Any:
    kind = default if isinstance(default, type) else type(default)
    if kind not in KINDS:
        if default and not text:
            raise ValueError(f"{name} is empty; give it a value, or leave out {name}= for {default}")
        return os.path.expanduser(text) if text or default is not None else None
    try:
        return {bool: _truth, list: _list, int: int, float: float}[kind](text)
    except ValueError:
        needed = f"a list such as [{text.strip('[]') or 'one,two'}]" if kind is list else KINDS[kind]
        raise ValueError(f"{name} is {text!r}; it must be {needed}") from None


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError
    return text.lower() == "true"


def _list(text: str) -> list:
    if not text.startswith("["):
        raise ValueError
    try:
        value: Any = OverridesParser.create().parse_override(f"value={text}").value()
        return value
    except HydraException:
        raise ValueError from None


def run_command(main: Callable[[list[str]], Any]) -> None:
    """Run a command that reads its arguments without Hydra. If ``main`` returns a number, it is the exit code. Expected errors (bad
    values, unusable files, and the errors that this project defines) end the command with one line."""
    try:
        code = main(sys.argv[1:])
    except Exception as error:
        if not isinstance(error, OSError | ValueError) and not type(error).__module__.startswith("afl."):
            raise
        sys.exit(message_of(error))
    sys.exit(code if isinstance(code, int) else 0)


def message_of(error: Exception) -> str:
    """The text of an error; an error of the system becomes a sentence. Only that imports the package that loads torch."""
    if not isinstance(error, OSError):
        return str(error)
    from datasets.errors import explained

    return explained(error)


def asks_for_help(arguments: Sequence[str], document: str) -> bool:
    """Whether ``arguments`` ask for help; ``document`` is then printed."""
    asked = any(argument in HELP for argument in arguments)
    if asked:
        print(help_text(document))
    return asked


def help_text(document: str) -> str:
    """A docstring as help: its text is as wide as the terminal, and its section about exceptions is left out."""
    lines = document.partition("\nRaises:")[0].strip().splitlines()
    blocks = itertools.groupby(lines, key=lambda line: line[:1] not in ("", " "))
    return "\n".join(_filled("\n".join(block)) if text else "\n".join(block) for text, block in blocks)


def _filled(paragraph: str) -> str:
    return textwrap.fill(
        " ".join(paragraph.split()), _width(), break_long_words=False, break_on_hyphens=False
    )


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 120)


def printable(text: object) -> str:
    """Text from a data set or a file for a terminal: control characters are escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in str(text)
    )


def quiet_libraries() -> None:
    """Suppress informational messages of libraries; warnings and errors are shown."""
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("matplotlib", "git", "hydra"):
        logging.getLogger(name).setLevel(logging.WARNING)
