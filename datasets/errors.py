"""The exceptions of this package, plain sentences for errors of the system, and texts that are safe to print."""

from __future__ import annotations

import errno

_REMEDIES = {
    errno.EACCES: "change its permissions or choose another path",
    errno.EPERM: "change its permissions or choose another path",
    errno.EROFS: "choose another path",
    errno.EEXIST: "a file has the name of a folder: move it or choose another path",
    errno.ENOTDIR: "a file has the name of a folder: move it or choose another path",
    errno.EISDIR: "choose the path of a file",
    errno.ENOENT: "correct the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOSPC: "free some space, or choose a path on another disk",
    errno.EDQUOT: "free some space, or choose a path on another disk",
}


def printable(text: str) -> str:
    r"""The text on one line, with control characters, invisible characters and lone surrogates as escapes (``\x1b``).

    File names and class names come from users' files. Unescaped, they could move the cursor or stop the program.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason(error: BaseException) -> str:
    """Why something failed, on one line; of an error of the system, its reason without the number and the path."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def explained(error: BaseException) -> str:
    """The text of an error. For an error of the system, ``PATH: reason; what to do`` instead of ``[Errno N] reason: 'PATH'``."""
    if not isinstance(error, OSError) or type(error).__str__ is not OSError.__str__ or not error.strerror:
        return str(error)
    place = "" if error.filename is None else f"{error.filename}: "
    return f"{place}{error.strerror}{_remedy(error)}"


def _remedy(error: OSError) -> str:
    return f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""


class WriteError(OSError):
    """A file cannot be written."""

    def __str__(self) -> str:
        return f"{self.filename} could not be written: {self.strerror}{_remedy(self)}"


class DataError(ValueError):
    """A data set is missing, damaged or inconsistent. The message names the place and the repair."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
