"""The pages of the site before mkdocs reads them: link targets exist, and figures equal those of the CSV files."""

from __future__ import annotations

import csv
import re
from functools import partial

import pytest
import yaml

from afl.config import CONF
from afl.losses import ClassificationLoss, OnlineHardExampleMining
from afl.site.api import PAGES, api_pages
from afl.site.losses import averages, losses_page
from afl.site.stage import links, stage
from scripts.site import main

ROOT = CONF.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "source"
    return folder, stage(ROOT, folder)


def test_the_target_of_every_link_is_a_file_of_the_site(site):
    folder, pages = site
    checked = 0
    for page in pages:
        path = folder / page
        for match in links(path.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", match[3]):
                assert (path.parent / match[3]).is_file(), (page, match[0])
                checked += 1
    assert checked > 50 and (folder / "zoo" / "fcos-shapes-afl.safetensors").is_file()


def test_links_in_code_are_kept_and_others_only_lose_their_target(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(
        "[page](b.md#x) [`code`](gone.md) [out](https://example.org) ![](../secret.png)\n`[not](a.md)`\n```\n[nor](that.md)\n```\n"
    )
    (tmp_path / "docs" / "b.md").write_text("# x")
    (tmp_path / "secret.png").write_bytes(b"")
    stage(tmp_path, tmp_path / "site")
    text = (tmp_path / "site" / "docs" / "a.md").read_text()
    assert "[page](b.md#x) `code` [out](https://example.org) " in text and "secret" not in text
    assert "`[not](a.md)`" in text and "[nor](that.md)" in text


@pytest.mark.parametrize("name", ["shapes", "sampling"])
def test_the_rows_of_losses_are_means_over_detectors(name):
    cells: dict[tuple[str, str], list[float]] = {}
    with open(ROOT / "results" / name / "cells.csv", newline="") as file:
        for row in csv.DictReader(file):
            for metric in ("AP", "AP_r"):
                cells.setdefault((row["loss"], metric), []).append(100 * float(row[metric]))
    found = averages(ROOT / "results" / name / "table.md")
    assert set(found) == {loss for loss, _ in cells}
    for (loss, metric), values in cells.items():
        shown = float(re.search(r"-?[\d.]+", found[loss][metric])[0])
        assert shown == pytest.approx(sum(values) / len(values), abs=0.051)


def test_the_page_of_losses_has_equation_picture_and_figures(tmp_path):
    losses = {
        "fl": ClassificationLoss,
        "ohem": partial(ClassificationLoss, chain={"ohem": OnlineHardExampleMining}),
    }
    text = losses_page(losses, CONF, ROOT / "results", tmp_path / "pictures")
    assert (
        "## `fl`" in text
        and "alpha_t g^gamma BCE(z, y)" in text
        and "| [shapes](../results/shapes/table.md) | 50.1" in text
    )
    for name in losses:
        assert (tmp_path / "pictures" / f"{name}.svg").read_text().startswith("<?xml")
        assert f"(pictures/{name}.svg)" in text


def test_the_navigation_names_generated_pages_and_every_module_exists(site):
    folder, pages = site
    config = yaml.safe_load((ROOT / "docs" / "mkdocs.yml").read_text())
    entries = [entry for section in config["nav"] for part in section.values() for entry in part]
    named = {entry if isinstance(entry, str) else next(iter(entry.values())) for entry in entries}
    made = (
        {str(page) for page in pages} | {"docs/every_loss.md"} | {f"docs/api/{name}" for name in api_pages()}
    )
    assert named <= made
    documents = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert documents <= named, documents - named
    for _, _, modules in PAGES.values():
        for module in modules:
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_a_missing_package_and_a_mistake_give_one_line(monkeypatch):
    with pytest.raises(ValueError, match="Did you mean output"):
        main(["outptu=x"])
    monkeypatch.setattr("scripts.site.importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match="make site"):
        main([])
