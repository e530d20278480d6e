"""Records from a W&B server: the same table without the disks that the runs were made on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from afl.tracking import RECORD, Record, record_of_summary

log = logging.getLogger(__name__)


class ServerError(RuntimeError):
    """The server could not be asked, or has no such project."""


class ServerRun(Protocol):
    """What is read of a run; ``wandb.apis.public.Run`` has it."""

    name: str
    id: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]


class ServerApi(Protocol):
    """What is asked of the server; ``wandb.Api`` has it."""

    def runs(self, path: str) -> Iterable[ServerRun]:
        """All runs of ``ENTITY/PROJECT``, or of the own ``PROJECT``."""


def server_records(api: ServerApi, *, entity: str | None, project: str) -> list[Record]:
    """The records of all runs of a project that have one, by run key.

    Tested against a stand-in of ``wandb.Api``, not against a server: what a real one answers is W&B's promise.

    Raises:
        ServerError: the project cannot be read.
    """
    path = f"{entity}/{project}" if entity else project
    records, without = [], 0
    try:
        for run in api.runs(path):
            text = run.summary.get(RECORD)
            if text is None:
                without += 1
                continue
            try:
                records.append(record_of_summary(text, run.config, f"W&B run {run.name} ({run.id})"))
            except ValueError as error:
                log.warning("left out of the table: %s", error)
    except Exception as error:  # of W&B, of the network, of whatever it is built on
        message = " ".join(str(error).split())[:200]
        raise ServerError(f"W&B project {path} cannot be read ({type(error).__name__}: {message})") from error
    if without:
        log.warning("%d runs of %s have no record: unfinished, or not of this project's code", without, path)
    return sorted(records, key=lambda record: (record.key, record.status))


def connect() -> ServerApi:
    """``wandb.Api`` of who is logged in.

    Raises:
        ServerError: nobody is, or the server does not answer.
    """
    import wandb  # two seconds, only where it is used

    try:
        return wandb.Api()
    except Exception as error:
        message = " ".join(str(error).split())[:200]
        raise ServerError(f"W&B cannot be asked ({message}); log in first: wandb login") from error
