"""Sealed JSON objects detect every change of one byte of their text."""

from __future__ import annotations

import json

import pytest

from datasets.sealed import CHECKSUM, seal, unseal

VALUE = {
    "AP": 0.1 + 0.2,
    "steps": 60,
    "none": None,
    "names": ["Größe", "a"],
    "nested": {"b": 1, "a": [1.5, True]},
}


def test_a_sealed_object_is_restored_from_any_order_and_layout():
    sealed = seal(VALUE)
    assert list(sealed)[-1] == CHECKSUM and unseal(sealed) == VALUE
    text = json.dumps(dict(reversed(sealed.items())), indent=3, ensure_ascii=False)
    assert unseal(json.loads(text)) == VALUE
    assert unseal(VALUE) == VALUE, "an object from before checksums"


def test_numbers_as_keys_are_sealed_as_json_reads_them():
    assert unseal(json.loads(json.dumps(seal({"counts": {10: 1, 9: 2}})))) == {"counts": {"10": 1, "9": 2}}


def test_every_changed_byte_is_detected():
    whole = json.dumps(seal(VALUE)).encode()
    for i in range(len(whole)):
        for bit in (1, 2, 4, 16):
            data = bytearray(whole)
            data[i] ^= bit
            try:
                found = unseal(json.loads(data))
            except (ValueError, TypeError):
                continue
            # If the name of the checksum changes, it is an unknown field, which the readers reject.
            assert found == VALUE or set(found) - set(VALUE), data


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_rejected(value):
    with pytest.raises(ValueError):
        seal({"a": value})
