"""Build the documents as a website.

    python -m scripts.site                                  # outputs/site/index.html
    python -m scripts.site serve                            # build it and show it: http://127.0.0.1:8000
    python -m scripts.site output=outputs/site

Options:
    output=outputs/site    the folder of the site; its source goes to the same name with -source

Pages are README.md, docs/ and results/, a page with every loss made from conf/loss and the tables, and the interface from docstrings. Broken
links end the build with an error. Needs the packages of docs/requirements.txt, which `make site` installs.
"""

from __future__ import annotations

import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from afl.config import CONF
from scripts.entry import asks_for_help, options_of, run_command

ROOT = CONF.parent
PORT = 8000
STYLE = "site.css"


def main(arguments: list[str]) -> int:
    """Build the site, and serve it if asked; returns the exit code."""
    if asks_for_help(arguments, __doc__):
        return 0
    serve = arguments[:1] == ["serve"]
    options = options_of(arguments[serve:], {"output": "outputs/site"})
    if importlib.util.find_spec("mkdocs") is None:
        raise ValueError("mkdocs is not installed: make site installs the packages of docs/requirements.txt")
    output = Path(options["output"]).resolve()
    source = output.with_name(f"{output.name}-source")
    write_source(source)
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        str(source.parent / "mkdocs.yml"),
    ]
    config = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    places = f"docs_dir: {source.name}\nsite_dir: {output.name}\n"
    (source.parent / "mkdocs.yml").write_text(config.replace("PROJECT", str(ROOT)) + places, encoding="utf-8")
    # The advertisement of the theme does not count as a warning.
    code = subprocess.run(command, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}).returncode
    if code:
        return code
    print(f"written: {output / 'index.html'}")
    if serve:
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(output))
        print(f"http://127.0.0.1:{PORT}, until Ctrl-C")
        http.server.ThreadingHTTPServer(("127.0.0.1", PORT), handler).serve_forever()
    return 0


def write_source(source: Path) -> None:
    """All pages of the site as Markdown below ``source``."""
    from afl.site.api import api_pages
    from afl.site.losses import losses_page
    from afl.site.stage import stage
    from scripts.reports.figures import configured_losses

    stage(ROOT, source)
    docs = source / "docs"
    shutil.copyfile(ROOT / "docs" / STYLE, docs / STYLE)
    page = losses_page(configured_losses(), CONF, ROOT / "results", docs / "loss_pictures")
    (docs / "every_loss.md").write_text(page, encoding="utf-8")
    (docs / "api").mkdir()
    for name, text in api_pages().items():
        (docs / "api" / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
