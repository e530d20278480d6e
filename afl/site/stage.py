"""The source folder of the site: the repository's documents in their own places, so that their links stay as they are."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "results/**/*.md")
# Files that pages link to and the site serves; a link to anything else loses its target and keeps its words.
SERVED = (
    "results/",
    "zoo/",
    "examples/",
    "docs/",
    "conf/",
    "afl/",
    "detectors/",
    "datasets/",
    "scripts/",
    "LICENSE",
    "CITATION.cff",
    "Makefile",
)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def stage(root: Path, target: Path) -> list[Path]:
    """Copy documents and everything that they link to from ``root`` to ``target``, which is emptied first.

    Returns:
        The pages, relative to ``target``.
    """
    shutil.rmtree(target, ignore_errors=True)
    pages = sorted({path for pattern in DOCUMENTS for path in root.glob(pattern)})
    for page in pages:
        place = target / page.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(_with_served_links(page, root, target), encoding="utf-8")
    return [page.relative_to(root) for page in pages]


def links(text: str) -> Iterator[re.Match]:
    """Markdown links and pictures outside of code, in order: groups are ``!``, words, file and anchor."""
    code = [match.span() for match in re.finditer(r"```.*?```|`[^`\n]*`", text, re.S)]
    for match in LINK.finditer(text):
        # Code inside the words of a link is part of them.
        if not any(start <= match.start() and match.end() <= end for start, end in code):
            yield match


def _with_served_links(page: Path, root: Path, target: Path) -> str:
    """The text of a page; files that it links to are copied, links that lead nowhere on the site become their words."""
    text = page.read_text(encoding="utf-8")
    parts, end = [], 0
    for match in links(text):
        file = match[3]
        if re.match(r"[a-z]+:", file):
            continue
        path = (page.parent / file).resolve()
        kept = path.is_file() and path.is_relative_to(root)
        place = path.relative_to(root) if kept else None
        if kept and path.suffix != ".md" and str(place).startswith(SERVED):
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / place)
        elif not (kept and path.suffix == ".md"):
            parts += [text[end : match.start()], match[2]]
            end = match.end()
    return "".join([*parts, text[end:]])
