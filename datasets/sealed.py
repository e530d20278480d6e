"""A checksum inside JSON objects, so that a changed byte in a file of this project is noticed when it is read again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CHECKSUM = "checksum"


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
    """``value`` with the last key ``checksum``: 16 hexadecimal digits of the SHA-256 over its content.

    The digits do not depend on the order of keys or on the layout of the text.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value has no JSON form.
    """
    plain = json.loads(json.dumps(value, allow_nan=False))
    return {**plain, CHECKSUM: _digest(plain)}


def unseal(value: Mapping[str, Any]) -> dict[str, Any]:
    """``value`` without its checksum, which is verified. An object without one was written before checksums and passes.

    Raises:
        ValueError: the content is not the one that was sealed.
    """
    content = {name: part for name, part in value.items() if name != CHECKSUM}
    if CHECKSUM in value and value[CHECKSUM] != _digest(content):
        raise ValueError("its checksum does not match its content")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
