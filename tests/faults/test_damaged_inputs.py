"""Thousands of randomly damaged files: each gives one clear error, or is read without silent loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from afl.tracking import Record, read_record, write_record
from afl.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from tests.datasets.damage import byte_damage, no_hang
from tests.datasets.damaged_reading import COCO, LVIS, XML, ImageFolder, JsonFolder, XmlFolder
from tests.faults.short_run import assert_same

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


def test_damaged_checkpoints(tmp_path, count):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 5)).sum().backward()
    optimizer.step()
    state = {
        "run": "abc", "step": 7, "seconds": 1.5, "model": dict(model.state_dict()), "optimizer": optimizer.state_dict(),
        "average": None, "torch_rng": torch.get_rng_state(),
    }  # fmt: skip
    path = save_checkpoint(tmp_path, state)
    whole, found = path.read_bytes(), load_checkpoint(path)

    def check(data: bytes) -> None:
        path.write_bytes(data)
        try:
            with no_hang():
                again = load_checkpoint(path)
        except CheckpointError as error:
            assert str(path) in str(error) and "\n" not in str(error), error
        else:
            # Checksums do not cover names and dates in the archive's headers, which do not affect the state.
            assert_same(again, found)
        count(WHAT)

    many(500)(given(byte_damage(whole))(check))()


def test_damaged_records(tmp_path, count):
    record = Record(
        key="k", status="finished", dataset="shapes", detector="fcos", loss="afl", seed=3, config={"a": [1]},
        metrics={"AP": 0.25, "AP_r": None}, per_class={"blue": 0.5}, groups={"blue": "r"}, steps=60, train_seconds=1.5,
    )  # fmt: skip
    path = tmp_path / "record.json"
    write_record(path, record)
    whole = path.read_bytes()

    def check(data: bytes) -> None:
        path.write_bytes(data)
        try:
            again = read_record(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error), error
        else:
            assert again == record
        count(WHAT)

    many(300)(given(byte_damage(whole))(check))()
