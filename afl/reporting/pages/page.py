"""The frame of a page: a template for each section, with style and script inside the page and no external files."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from afl.reporting.names import GROUPS, percent
from afl.reporting.pages.chart import PALETTE

TEMPLATES = Path(__file__).parent.parent / "templates"


@dataclass(frozen=True)
class Section:
    """A headed part of a page.

    Attributes:
        name: its address in the page, one word.
        title: its heading.
        short: its name in the navigation.
        template: its file in ``templates/``, which finds the content as ``section.content``.
    """

    name: str
    title: str
    short: str
    template: str
    content: Mapping[str, Any] = field(default_factory=dict)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.globals |= {"groups": GROUPS, "palette": PALETTE}
    return environment


def document(
    title: str,
    sections: Sequence[Section],
    tiles: Sequence[tuple[str, str]] = (),
    introduction: str = "",
    runs: int = 0,
) -> str:
    """The whole page as HTML.

    Args:
        tiles: (figure, what it counts) below the title.
        introduction: a paragraph below the title.
        runs: finished runs that the page was made from; 0: of none.
    """
    return (
        _environment()
        .get_template("page.html.j2")
        .render(title=title, sections=sections, tiles=tiles, introduction=introduction, runs=runs)
    )
