"""The command that trains a run, from the run's config."""

from __future__ import annotations

import json
import shlex
from typing import Any

from omegaconf import DictConfig, OmegaConf

from afl.config import CONF
from afl.tracking import differing
from afl.training.compose import compose_cell

START = "python -m scripts.train"


def command_of(config: DictConfig) -> str:
    """Its groups and seed, and every other setting that decides the result and differs from what these groups give.

    For a data set without a file in ``conf/dataset`` the other settings are unknown and left out.

    Args:
        config: of a run, with all values resolved.
    """
    cell = config.cell
    chosen = [f"dataset={cell.dataset}", f"seed={config.seed}"]
    command = [f"detector={cell.detector}", f"loss={cell.loss}", *chosen]
    if (CONF / "dataset" / f"{cell.dataset}.yaml").is_file():
        usual = compose_cell(detector=cell.detector, loss=cell.loss, overrides=chosen)
        run, base = (_plain(one) for one in (config, usual))
        for name in differing(run, base):
            missing = OmegaConf.select(usual, name, default=_ABSENT) is _ABSENT
            command.append(shlex.quote(f"{'+' * missing}{name}={_text(OmegaConf.select(config, name))}"))
    return " ".join([START, *command])


_ABSENT = object()


def _plain(config: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain


def _text(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, str):
        return value
    return json.dumps(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
