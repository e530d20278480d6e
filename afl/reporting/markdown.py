"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], *, text: int = 1, align: str = "") -> str:
    """A table whose cells are already Markdown.

    Args:
        head: of the columns.
        rows: with as many cells each.
        text: number of first columns that are text, aligned left; the others are numbers, aligned right.
        align: the rule of each column, separated by spaces; replaces ``text``.
    """
    rule = align.split() or ["---"] * text + ["---:"] * (len(head) - text)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))
