"""Thousands of randomly damaged JSON, XML and image files: one clear error each, or a reading that loses nothing silently."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from tests.datasets.damage import byte_damage
from tests.datasets.damaged_reading import COCO, LVIS, XML, ImageFolder, JsonFolder, XmlFolder

pytestmark = pytest.mark.faults
WHAT = "damaged inputs read or refused clearly (unclear ones fail)"


def many(number: int):
    return settings(settings.get_profile("faults"), max_examples=number)


@pytest.mark.parametrize(("kind", "damage"), [("coco", COCO), ("lvis", LVIS)], ids=["coco", "lvis"])
def test_damaged_json(kind, damage, tmp_path, count):
    folder = JsonFolder(tmp_path, kind)

    def check(data: bytes) -> None:
        folder.check(data)
        count(WHAT)

    many(700)(given(damage)(check))()


def test_damaged_xml(tmp_path, count):
    folder = XmlFolder(tmp_path)

    def check(data: bytes) -> None:
        folder.check(data)
        count(WHAT)

    many(600)(given(XML)(check))()


@pytest.mark.parametrize("i", [0, 1], ids=["jpeg", "png"])
def test_damaged_images(i, tmp_path, count):
    folder = ImageFolder(tmp_path)

    def check(data: bytes) -> None:
        folder.check(i, data)
        count(WHAT)

    many(400)(given(byte_damage(folder.whole[i]))(check))()
