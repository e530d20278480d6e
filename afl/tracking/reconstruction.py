"""Which losses are forms of AFL, and what readers of their figures must know."""

from __future__ import annotations

import re

RECONSTRUCTION = "AFL here is a reconstruction: the paper's formula is not public"
WORD = re.compile(r"(?<![A-Za-z0-9])afl(?![A-Za-z0-9])")


def names_afl(text: str) -> bool:
    """Whether the name of a loss, or a text with such names, contains the word ``afl``: ``afl_per_class`` and ``ablation/afl_head``
    do, ``baflo`` does not."""
    return WORD.search(text) is not None
