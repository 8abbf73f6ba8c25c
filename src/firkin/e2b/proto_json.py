"""Messages of protobuf in JSON, read as E2B's own service reads them.

Clients may be newer than this server: fields that nobody here knows are ignored.
Null is as good as absent, numbers may be strings, bytes are base64 of either
alphabet, padded or not.
"""

from __future__ import annotations

import base64
from typing import Any, TypeVar

import msgspec

from firkin.e2b.connect_codec import Code, RpcError

T = TypeVar("T", bound="Message")
_MAPS = frozenset({"envs"})  # whose values are texts: a null among them is none


class Message(msgspec.Struct):
    """A message; its fields have the names of the wire, or both where they differ by case."""


def decode(payload: bytes, kind: type[T]) -> T:
    """Raises `RpcError`."""
    try:
        return msgspec.convert(_without_nulls(msgspec.json.decode(payload)), kind, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RpcError(Code.INVALID_ARGUMENT, f"the request does not fit: {error}") from None


def _without_nulls(value: Any) -> Any:
    match value:
        case dict():
            return {key: one if key in _MAPS else _without_nulls(one) for key, one in value.items() if one is not None}
        case list():
            return [_without_nulls(one) for one in value]
    return value


def read_bytes(text: str) -> bytes:
    """Raises `RpcError`."""
    url_safe = "-" in text or "_" in text
    digits = text.rstrip("=")
    digits += "=" * (-len(digits) % 4)
    try:
        if url_safe and ("+" in text or "/" in text):
            raise ValueError("digits of both alphabets")
        return base64.b64decode(digits, altchars="-_" if url_safe else None, validate=True)
    except ValueError:  # binascii.Error is one
        raise RpcError(Code.INVALID_ARGUMENT, "the input is not base64") from None
