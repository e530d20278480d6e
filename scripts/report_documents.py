"""``python -m scripts.report documents``: the tables inside README.md and results/README.md, from the tables of ``results/``."""

from __future__ import annotations

import sys
from pathlib import Path

from afl.reporting.documents import refreshed
from afl.tracking import write_text

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "results/README.md")


def refresh_documents(arguments: list[str]) -> None:
    """Write what ``make table-NAME`` last wrote between the marks of ``DOCUMENTS``."""
    if arguments:
        sys.exit("documents takes no options")
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        if (new := refreshed(text, ROOT / "results")) != text:
            write_text(ROOT / name, new)
            print("written:", name)
        else:
            print("up to date:", name)
