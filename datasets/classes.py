"""Class names from a configuration, for formats whose files do not list their classes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from datasets.errors import DataError
from datasets.fields import BadRecord, class_name
from datasets.locations import require_texts

MOST_SHOWN = 40


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
    names = ",".join(shown if all(name.isidentifier() for name in shown) else [f'"{name}"' for name in shown])
    more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    return DataError(
        f"no object in {where} has a class of dataset.classes=[{','.join(list(classes)[:3])}{',...' if len(classes) > 3 else ''}]; "
        f"set 'dataset.classes=[{names}]'{more}, the classes that were found"
    )
