"""The exception of this package, and texts that are safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""The text on one line, with control characters, invisible characters and lone surrogates as escapes (``\x1b``).

    File names and class names come from users' files. Unescaped, they could move the cursor or stop the program.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class DataError(ValueError):
    """A data set is missing, damaged or inconsistent. The message names the place and the repair."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
