"""Configs as text: the override syntax of the command line, the config in a run directory, and checks of values.

Imports neither torch nor a data set, so that a command can report a typo before it loads them.
"""

from afl.config.choices import did_you_mean, is_group, members, unknown_choice
from afl.config.compose import composed
from afl.config.overrides import (
    CONF,
    IMAGE_SIZE,
    SEVERAL,
    ConfigError,
    apply_overrides,
    hydra_override,
    quoted,
    unknown_setting,
    without_effect,
)
from afl.config.saved import CONFIG, UNRESOLVED, missing_run, read_config, save_config
from afl.config.values import check_values

__all__ = [
    "CONF",
    "CONFIG",
    "IMAGE_SIZE",
    "SEVERAL",
    "UNRESOLVED",
    "ConfigError",
    "apply_overrides",
    "check_values",
    "composed",
    "did_you_mean",
    "hydra_override",
    "is_group",
    "members",
    "missing_run",
    "quoted",
    "read_config",
    "save_config",
    "unknown_choice",
    "unknown_setting",
    "without_effect",
]
