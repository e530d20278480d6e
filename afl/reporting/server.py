"""Records from a W&B server, for a table without access to the run directories."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from afl.tracking import RECORD, Record, record_of_summary

log = logging.getLogger(__name__)


class ServerError(RuntimeError):
    """The server did not answer, or has no such project."""


class ServerRun(Protocol):
    """The part of ``wandb.apis.public.Run`` that is used."""

    name: str
    id: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]


class ServerApi(Protocol):
    """The part of ``wandb.Api`` that is used."""

    def runs(self, path: str) -> Iterable[ServerRun]:
        """All runs of ``ENTITY/PROJECT``, or of the user's own ``PROJECT``."""


def server_records(api: ServerApi, *, entity: str | None, project: str) -> list[Record]:
    """The records of all runs of a project that have one, by run key.

    The tests use a replacement of ``wandb.Api`` and not a server.

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
    except Exception as error:  # W&B raises its errors and those of the libraries that it uses
        message = " ".join(str(error).split())[:200]
        raise ServerError(f"W&B project {path} cannot be read ({type(error).__name__}: {message})") from error
    if without:
        log.warning("%d runs of %s have no record: unfinished, or not of this project's code", without, path)
    return sorted(records, key=lambda record: (record.key, record.status))


def connect() -> ServerApi:
    """``wandb.Api`` of the user who is logged in.

    Raises:
        ServerError: no user is logged in, or the server does not answer.
    """
    import wandb  # takes two seconds

    try:
        return wandb.Api()
    except Exception as error:
        message = " ".join(str(error).split())[:200]
        raise ServerError(f"W&B does not answer ({message}); log in first: wandb login") from error
