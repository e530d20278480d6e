"""The members of config groups, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from afl.config.overrides import CONF

LOCAL = "local"  # the group of the user's own files, whose folder may be missing


def unknown_choice(arguments: Sequence[str]) -> str | None:
    """A one-line error for the first ``group=member`` whose member does not exist, or None."""
    for argument in arguments:
        found = re.fullmatch(r"\+?([a-z_/]+)=([\w,/.-]+)", argument)
        # The groups below hydra/ also have members in Hydra's plugins.
        if not found or found[1].startswith("hydra/") or not is_group(found[1]):
            continue
        known = members(found[1])
        for member in found[2].split(","):
            if member not in known and member != "null":
                if not known:
                    return (
                        f"There is no {found[1]} {member!r}: there is no file conf/{found[1]}/{member}.yaml"
                    )
                meant = did_you_mean(member, known, f"{found[1]}=")
                return f"There is no {found[1]} {member!r}.{meant} There are: {', '.join(known)}"
    return None


def is_group(name: str) -> bool:
    """Whether ``name`` is a config group."""
    return name == LOCAL or (CONF / name).is_dir()


def did_you_mean(name: str, known: Iterable[str], before: str = "") -> str:
    """`` Did you mean NEAREST?`` with the nearest of the known names after ``before``; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {before}{near[0]}?" if near else ""


def members(group: str) -> list[str]:
    """The members of a config group."""
    folder = CONF / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
