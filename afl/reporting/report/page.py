"""One self-contained HTML page: style, script and pictures inside, light and dark, readable on a phone."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).parent
# A stray reference cannot reach the network: the page has everything it needs.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
# Larger photos are shrunk to this side.
PHOTO_SIDE = 480


@dataclass(frozen=True)
class Section:
    """A headed part of the page.

    Attributes:
        name: its address in the page, one word. title: its heading. short: its name in the navigation.
        body: HTML.
    """

    name: str
    title: str
    short: str
    body: str


def document(title: str, introduction: str, sections: Sequence[Section], footer: str = "") -> str:
    """The whole page."""
    links = "".join(f'<a href="#{s.name}">{escape(s.short)}</a>' for s in sections)
    parts = "".join(
        f'<section id="{s.name}"><h2>{escape(s.title)}</h2>{s.body}</section>\n' for s in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{(HERE / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<header class="top"><h1>{escape(title)}</h1>{introduction}</header>
<nav><div><div class="links">{links}</div><button id="theme" type="button" aria-label="switch between light and dark">Dark</button></div></nav>
<main>
{parts}</main>
<footer>{footer}</footer>
<script>
{(HERE / "page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, text: Sequence[int] = ()) -> str:
    """A table of HTML cells that scrolls sideways where it is too wide; columns in ``text`` are set flush left."""
    kind = [' class="text"' if i in text else "" for i in range(len(head))]
    first = "".join(f"<th{kind[i]}>{escape(cell)}</th>" for i, cell in enumerate(head))
    body = "".join(
        f"<tr>{''.join(f'<td{kind[i]}>{cell}</td>' for i, cell in enumerate(row))}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table></div>'


def choices(name: str, label: str, parts: Mapping[str, str]) -> str:
    """A select, and of its parts (HTML by value) the one that it shows; without a script the first one."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    options = "".join(f"<option>{escape(value)}</option>" for value in parts)
    shown = "".join(
        f'<div data-part="{name}" data-value="{escape(value)}"{"" if i == 0 else " hidden"}>{html}</div>'
        for i, (value, html) in enumerate(parts.items())
    )
    return f'<div class="controls"><label>{escape(label)} <select data-shows="{name}">{options}</select></label></div>{shown}'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values, as text."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in pairs)}</dl>"


def note(*paragraphs: str) -> str:
    """Something a reader must not miss; HTML."""
    return f'<div class="note">{"".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)}</div>'


class Photos:
    """Photos of a page, each of them stored once however often it is shown."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._stored: list[str] = []

    def show(
        self,
        name: str,
        pixels: np.ndarray,
        boxes: Iterable[tuple[np.ndarray, str, str]],
        labels: bool = False,
    ) -> str:
        """A photo with boxes over it, as SVG.

        Args:
            name: what the photo is known by in this page.
            pixels: (H, W, 3) uint8 RGB.
            boxes: (xyxy in pixels, class, tooltip).
            labels: write the tooltips over the boxes too.
        """
        boxes, letters = list(boxes), max(pixels.shape[:2]) / 26
        height, width = pixels.shape[:2]
        if name not in self._known:
            self._known[name] = f"photo{len(self._known)}"
            self._stored.append(
                f'<image id="{self._known[name]}" width="{width}" height="{height}" preserveAspectRatio="none" '
                f'href="{data_uri(pixels)}"/>'
            )
        drawn = "".join(
            f'<rect class="{style}" x="{x1:.1f}" y="{y1:.1f}" width="{max(x2 - x1, 0):.1f}" height="{max(y2 - y1, 0):.1f}">'
            f"<title>{escape(text)}</title></rect>"
            for (x1, y1, x2, y2), style, text in boxes
        )
        if labels:
            drawn += "".join(
                f'<text class="{style}" x="{max(x1, 1):.1f}" y="{max(y1 - 0.2 * letters, letters):.1f}" '
                f'font-size="{letters:.1f}" stroke-width="{letters / 4:.1f}">{escape(text)}</text>'
                for (x1, y1, _, _), style, text in boxes
            )
        return f'<svg viewBox="0 0 {width} {height}"><use href="#{self._known[name]}"/>{drawn}</svg>'

    def store(self) -> str:
        """The photos themselves; stands once in the page."""
        return f'<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>{"".join(self._stored)}</defs></svg>'


def data_uri(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB as a ``data:`` address: PNG where it is small, else JPEG of at most ``PHOTO_SIDE`` pixels."""
    scale = PHOTO_SIDE / max(pixels.shape[:2])
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in pixels.shape[1::-1])
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    small = pixels.size <= 3 * 128 * 128
    kind, mime = (".png", "image/png") if small else (".jpg", "image/jpeg")
    data = cv2.imencode(kind, pixels[..., ::-1])[1].tobytes()
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
