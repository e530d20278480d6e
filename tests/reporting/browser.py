"""Opens a page in a real browser without a window."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr"
).split()
# Inspects the visible page, and writes the result into the document.
PROBE = """<script>
// Appended while the page is still loading, so that its end is waited for; everything else happens at that moment.
const copies = [...document.querySelectorAll("image, img")].map((node) => {
  const copy = new Image();
  copy.src = node.getAttribute("href") || node.getAttribute("src");
  copy.style.display = "none";
  document.body.append(copy);
  return copy;
});
window.addEventListener("load", () => {
  const paper = () => getComputedStyle(document.body).backgroundColor;
  const system = paper();
  const button = document.getElementById("theme");
  button.click(); const other = paper(); button.click(); const back = paper();
  const selects = [...document.querySelectorAll("select")].map((select) => {
    const before = [...select.closest("section").querySelectorAll(`[data-part="${select.dataset.shows}"]`)];
    select.selectedIndex = select.options.length - 1;
    select.dispatchEvent(new Event("change"));
    return [select.options.length, before.filter((part) => part.getBoundingClientRect().height > 0).length];
  });
  const seen = {
    pictures: copies.map((copy) => copy.naturalWidth), system, other, back, selects, errors: window.errors,
    uses: [...document.querySelectorAll("use")].filter((use) => !document.querySelector(use.getAttribute("href"))).length,
    spilled: [...document.querySelectorAll("svg.chart text")].filter((text) => {
      const [own, room] = [text, text.closest("svg")].map((node) => node.getBoundingClientRect());
      return own.width > 0 && (own.left < room.left - 1 || own.right > room.right + 16);
    }).map((text) => text.textContent),
    charts: document.querySelectorAll("svg.chart").length,
    width: window.innerWidth, overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    requests: performance.getEntriesByType("resource").map((entry) => entry.name).filter((n) => !n.startsWith("data:")),
  };
  const found = document.createElement("pre"); found.id = "seen"; found.textContent = JSON.stringify(seen);
  document.body.append(found);
});
</script>"""
ERRORS = "<script>window.errors = []; window.addEventListener('error', (e) => window.errors.push(e.message));</script>"


def visit(page: Path, folder: Path, *, width: int = 1280, dark: bool = False) -> dict:
    """Open ``page`` and describe its visible content; ``console`` contains the output of the browser's console.

    Skips the test if Chromium is not installed.
    """
    browser = next((path for name in NAMES if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser here; one of {', '.join(NAMES)} is needed")
    html = page.read_text(encoding="utf-8").replace("<head>", "<head>" + ERRORS, 1)
    probed = folder / "probed.html"
    probed.write_text(html.replace("</body>", PROBE + "</body>", 1), encoding="utf-8")
    command = [
        browser, *OPTIONS, f"--user-data-dir={folder}/profile-{width}-{dark}", f"--window-size={width},900",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", probed.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page did not finish loading: {done.stderr[-2000:]}"
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unescape(found[1])) | {"console": console}
