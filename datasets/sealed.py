"""A checksum inside JSON objects, to detect changed bytes when a file is read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CHECKSUM = "checksum"


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """Add the key ``checksum`` at the end: 16 hexadecimal digits of the SHA-256 of the content.

    The digits do not depend on the order of keys or on the layout of the text.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value has no JSON form.
    """
    plain = json.loads(json.dumps(value, allow_nan=False))
    return {**plain, CHECKSUM: _digest(plain)}


def unseal(value: Mapping[str, Any]) -> dict[str, Any]:
    """Verify and remove the checksum. Objects without a checksum pass: they were written before checksums existed.

    Raises:
        ValueError: the content has changed since it was sealed.
    """
    content = {name: part for name, part in value.items() if name != CHECKSUM}
    if CHECKSUM in value and value[CHECKSUM] != _digest(content):
        raise ValueError("its checksum does not match its content")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
