"""Identifies the run that a config describes: its key, its folder, and whether a record belongs to it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from afl.config import ConfigError
from afl.tracking import (
    FAILED,
    FINISHED,
    DamagedRecord,
    Record,
    RunKey,
    differing,
    environment,
    git_state,
    read_record,
    run_key,
)
from afl.training.classifier_stage import only_evaluates
from afl.training.data import RunData
from afl.training.distributed import World
from afl.training.initial_weights import identity
from afl.training.interruption import Interruption

RECORD, CURVES = "record.json", "metrics.jsonl"
DAMAGED_RECORD, OTHER_RECORD = "record.damaged.json", "record.other.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run, with the objects that all its parts share.

    Attributes:
        config: the composed config.
        plain: the resolved config as dictionaries.
        key: computed from config and data.
        folder: the run directory, named after the key.
        title: name of the run in messages.
        git: state of the code.
    """

    config: DictConfig
    plain: dict[str, Any]
    key: RunKey
    folder: Path
    title: str
    data: RunData
    world: World
    interruption: Interruption
    git: dict[str, Any]

    @property
    def only_evaluates(self) -> bool:
        """Whether the run evaluates the weights of its first stage; with several processes every run trains itself."""
        return self.world.size == 1 and only_evaluates(self.config)

    def unfinished_record(self, error: str | None = None) -> Record:
        """The run's record without a result, with the status "failed".

        Args:
            error: the reason of the failure.
        """
        names = self.data.statistics.names
        return Record(
            key=self.key.name,
            status=FAILED,
            **self._cell(),
            config=self.plain,
            groups=dict(zip(names, self.data.statistics.groups, strict=True)),
            environment=environment(str(self.world.device)),
            git=self.git,
            data_hash=self.data.fingerprint,
            curves=CURVES,
            error=error,
        )

    def finished_record(self, *, set_aside: bool = False) -> Record | None:
        """The record in the folder, if this run is finished; None otherwise.

        Args:
            set_aside: rename a damaged record or the record of another run. Only the process that holds the lock may do so.

        Raises:
            ConfigError: ``strict_code`` is set, and the run was finished by another state of the code.
        """
        path = self.folder / RECORD
        if not path.exists():
            return None
        try:
            record, problem, name = read_record(path), None, OTHER_RECORD
        except DamagedRecord as damaged:
            record, problem, name = None, str(damaged), DAMAGED_RECORD
        if record is not None and (difference := self._difference(record)):
            problem = f"{path} is not the record of this run: {difference}"
        if problem:
            if set_aside:
                path.rename(self.folder / name)
                log.warning("%s; it is kept as %s", problem, self.folder / name)
            return None
        if record.status != FINISHED:
            return None
        self.compare_code(record.git.get("source"), f"{self.key.name} was finished")
        return record

    def compare_code(self, source: str | None, what: str) -> None:
        """Warn if the run was trained by another state of the code.

        Args:
            source: digest of that code; None if it is unknown.
            what: start of the message, such as "NAME was finished".

        Raises:
            ConfigError: ``strict_code`` is set.
        """
        if source in (None, self.git["source"]) or not self.world.is_main:
            return
        message = f"{what} by another state of the code (source {source}, now {self.git['source']})"
        if self.config.get("strict_code", False):
            raise ConfigError(
                f"{message}, which strict_code=true does not allow; check out that code, or delete {self.folder}"
            )
        log.warning("%s", message)

    def _cell(self) -> dict[str, Any]:
        cell = self.plain["cell"]
        return {
            "dataset": cell["dataset"],
            "detector": cell["detector"],
            "loss": cell["loss"],
            "seed": self.plain["seed"],
        }

    def _difference(self, record: Record) -> str | None:
        """The reason why a record does not belong to this run; None if it does."""
        if record.key != self.key.name:
            return f"it names {record.key}"
        for name, value in self._cell().items():
            if getattr(record, name) != value:
                return f"its {name} is {getattr(record, name)}, not {value}"
        if record.data_hash not in (None, self.data.fingerprint):
            return f"its data set is {record.data_hash}, not {self.data.fingerprint}"
        names = differing(record.config, self.plain)
        return f"its config differs in {', '.join(names[:5])}" if names else None


def described_run(
    config: DictConfig, data: RunData, world: World, interruption: Interruption, title: str | None = None
) -> Run:
    """The run that ``config`` describes.

    Args:
        title: name of the run in messages; None for the name in its key.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True)
    key = cell_key(plain, data)
    return Run(
        config=config,
        plain=plain,
        key=key,
        folder=Path(config.paths.output) / key.name,
        title=title or key.slug,
        data=data,
        world=world,
        interruption=interruption,
        git=git_state(),
    )


def cell_key(config: Mapping[str, Any], data: RunData) -> RunKey:
    """Key of a run, computed from its resolved config, the content of its data, and its initial weights."""
    named = {part: {**config[part], "name": config["cell"][part]} for part in ("dataset", "detector", "loss")}
    return run_key({**config, **named}, data=f"{data.fingerprint}-{identity(config)}")
