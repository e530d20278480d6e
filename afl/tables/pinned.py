"""The commits at which a table's committed records were trained: ``trained_at`` in ``conf/table/NAME.yaml``."""

from __future__ import annotations

from omegaconf import DictConfig

from afl.config import ConfigError


def pinned(table: DictConfig) -> str:
    """One sentence about the commits of the committed records; empty without committed records.

    Raises:
        ConfigError: a commit is a number, because its digits are not in quotation marks.
    """
    commits = _commits(table)
    return (
        f"The committed records were trained at commit {commits}; new runs use today's configuration"
        if commits
        else ""
    )


def require_trainable(table: DictConfig) -> None:
    """Refuse to plan or train a table whose losses no longer exist.

    Raises:
        ConfigError: ``trainable`` is false in the table's file.
    """
    if not table.get("trainable", True):
        raise ConfigError(
            f"table={table.name} was trained with the configs of commit {_commits(table)}, and some of them no longer "
            f"exist: `make table-{table.name}` rebuilds it from its records; check out one of these commits to train it again"
        )


def _commits(table: DictConfig) -> str:
    commits = table.get("trained_at") or []
    for commit in commits:
        if not isinstance(commit, str):
            raise ConfigError(
                f"trained_at of table={table.name} has the number {commit}: write a commit that reads as a number in quotation marks"
            )
    return ", ".join(commits)
