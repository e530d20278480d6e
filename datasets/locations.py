"""Checks of the files, folders and names in a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets.errors import DataError

DEFAULT_REMEDY = "set dataset.root to a folder that has it"


def location(value: Path | str, remedy: str) -> Path:
    """A path, with ``~`` expanded to the home folder.

    Raises:
        DataError: the value is not a string, or ``~`` cannot be expanded.
    """
    if not isinstance(value, Path | str):
        raise DataError(f"{value!r} is not a path but {_kind(value)}: {remedy}, {quoted(value)}")
    try:
        return Path(value).expanduser()
    except RuntimeError as error:  # no such user
        raise DataError(f"{value} cannot be expanded ({error}): {remedy}") from error


def require_file(value: Path | str, remedy: str) -> Path:
    """The path of an existing file.

    Raises:
        DataError: there is no regular file; the message ends with ``remedy``.
    """
    path = location(value, remedy)
    if not path.is_file():
        raise DataError(f"there is no file {path}: {remedy}")
    return path


def require_folder(value: Path | str, remedy: str) -> Path:
    """The path of an existing folder.

    Raises:
        DataError: there is no folder; the message ends with ``remedy``.
    """
    path = location(value, remedy)
    if not path.is_dir():
        raise DataError(f"there is no folder {path}: {remedy}")
    return path


def require_texts(values: Sequence[str], name: str) -> list[str]:
    """Check that all values of the setting ``name`` are strings and return them.

    Raises:
        DataError: a value is a number, a boolean or null; the message says how to write it as a string.
    """
    if isinstance(values, str):
        raise DataError(f"{name} is {values!r}, not a list; write {name}=[{values}]")
    for value in values:
        if not isinstance(value, str):
            raise DataError(
                f"{name} has {value!r}, which is read as {_kind(value)}, not as a text: {quoted(value)}"
            )
    return list(values)


def quoted(value: object) -> str:
    """Instructions for writing a value so that YAML and Hydra read it as a string."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"""write it in quotes, '"{text}"' on a command line and "{text}" in a YAML file"""


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "a truth value"
    return (
        "a number"
        if isinstance(value, int | float)
        else "null"
        if value is None
        else f"a {type(value).__name__}"
    )
