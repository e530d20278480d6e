"""Commands in the documents against the code: they compose, their targets and files exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from afl.training.compose import CONF, compose_cell
from scripts.entry import unknown_choice

ROOT = CONF.parent
TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
TRAIN = re.findall(r"^    python -m scripts\.train ([^#\n]+)", TEXT, re.M)


@pytest.mark.parametrize("arguments", TRAIN)
def test_training_commands_compose(arguments):
    words = arguments.split()
    assert unknown_choice(words) is None
    given = dict(word.partition("=")[::2] for word in words)
    detector = given.pop("detector", "centernet")
    if "/" in given.get("experiment", ""):
        detector = given["experiment"].rpartition("/")[2]
    loss = given.pop("loss", "fl")
    compose_cell(detector=detector, loss=loss, overrides=[f"{name}={value}" for name, value in given.items()])


def test_there_are_commands_and_what_they_name_exists():
    assert len(TRAIN) >= 8
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z-]+)", TEXT):
        known = [line.partition(":")[0] for line in makefile.splitlines() if re.match(r"[a-z%-]+:", line)]
        assert any(re.fullmatch(name.replace("%", ".+"), target) for name in known), target
    for script in re.findall(r"python -m scripts\.(\w+)", TEXT):
        assert (ROOT / "scripts" / f"{script}.py").is_file()
    for path in re.findall(r"`((?:afl|conf|detectors|tests)/[\w/.]+)`", TEXT):
        assert Path(ROOT / path).exists(), path


def test_the_habits_are_ten():
    habits = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.findall(r"^(\d+)\. ", habits, re.M) == [str(n) for n in range(1, 11)]
