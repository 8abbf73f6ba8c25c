"""Values as JSON text. The law's identifiers, paths and ports are plain strings and numbers here.

Names inside a sandbox are bytes and need not be UTF-8; JSON is. What is not
UTF-8 reads as U+FFFD, so that one odd file name does not hide all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


def _plain(value: object) -> object:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): one for key, one in value.items()}
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


_ENCODER = msgspec.json.Encoder(enc_hook=_plain)


def encode(value: object) -> bytes:
    try:
        return _ENCODER.encode(value)
    except UnicodeEncodeError:
        return _ENCODER.encode(_readable(msgspec.to_builtins(value, enc_hook=_plain)))


def _readable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        case dict():
            return {_readable(key): _readable(one) for key, one in value.items()}
        case list() | tuple():
            return [_readable(one) for one in value]
    return value
