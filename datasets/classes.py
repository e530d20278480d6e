"""Class names from a configuration, for formats whose files do not list their classes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence

from datasets.errors import DataError
from datasets.fields import BadRecord, class_name
from datasets.locations import require_texts

MOST_SHOWN = 40
# Without quotes, a command line reads these words as other values than texts.
_WORDS = ("true", "false", "null", "nan", "inf")


def given_classes(classes: Sequence[str], name: str = "dataset.classes") -> list[str]:
    """Check the class names of the setting ``name`` and return them.

    Raises:
        DataError: the list is empty, or a name is not a string, is repeated or contains control characters.
    """
    names = require_texts(classes, name)
    if not names:
        raise DataError(f"{name} is empty: name at least one class")
    for position, own in enumerate(names):
        if own in names[:position]:
            raise DataError(
                f"{name} has {own!r} twice, as classes {names.index(own)} and {position}: name each class once"
            )
        try:
            class_name(own)
        except BadRecord as bad:
            raise DataError(f"{name} {bad.problem}; {bad.remedy}") from bad
    return names


def all_unknown(where: str, classes: Sequence[str], found: Collection[str]) -> DataError:
    """The error for a data set without an object of the ``classes``."""
    if not found:
        return DataError(f"no object in {where} has a class name; correct the annotations")
    shown = sorted(found)[:MOST_SHOWN]
    plain = all(name.isascii() and name.isidentifier() and name.lower() not in _WORDS for name in shown)
    names = shown if plain else [_in_quotes(name) for name in shown]
    setting = shlex.quote(f"dataset.classes=[{','.join(names)}]")
    more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    return DataError(
        f"no object in {where} has a class of dataset.classes=[{','.join(list(classes)[:3])}{',...' if len(classes) > 3 else ''}]; "
        f"set {setting}{more}, the classes that were found"
    )


def _in_quotes(name: str) -> str:
    """A name as Hydra reads it back: in quotes, where a backslash is only doubled before a quote."""
    return '"' + re.sub(r'(\\*)("|\Z)', lambda found: 2 * found[1] + found[2].replace('"', '\\"'), name) + '"'
