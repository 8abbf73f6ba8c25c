"""Values as JSON text. The law's identifiers, paths and ports are plain strings and numbers here."""

from __future__ import annotations

from collections.abc import Mapping

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
    return _ENCODER.encode(value)
