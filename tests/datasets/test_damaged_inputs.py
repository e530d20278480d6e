"""Randomly damaged JSON, XML and images give one clear error, or are read without losing a record of the file."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.datasets.damage import byte_damage
from tests.datasets.damaged_reading import COCO, LVIS, XML, ImageFolder, JsonFolder, XmlFolder

FEW = settings(
    max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize(("kind", "damage"), [("coco", COCO), ("lvis", LVIS)], ids=["coco", "lvis"])
def test_damaged_json(kind, damage, tmp_path):
    folder = JsonFolder(tmp_path, kind)
    FEW(given(damage)(folder.check))()


def test_damaged_xml(tmp_path):
    folder = XmlFolder(tmp_path)
    FEW(given(XML)(folder.check))()


@pytest.mark.parametrize("i", [0, 1], ids=["jpeg", "png"])
def test_damaged_images(i, tmp_path):
    folder = ImageFolder(tmp_path)
    FEW(given(byte_damage(folder.whole[i]))(lambda data: folder.check(i, data)))()
