"""JSON objects as frame payloads.

File names on Linux are bytes. They travel as JSON strings with undecodable
bytes as lone surrogates (PEP 383), which JSON escapes carry unharmed.
"""

from __future__ import annotations

from json import JSONDecoder, JSONEncoder

from firkin.wire.frames import WireError

TYPE_CHECKING = False  # as typing's, without importing typing into the guest
if TYPE_CHECKING:
    from typing import Any  # the JSON edge: values are checked by the readers below

    Object = dict[str, Any]
else:
    Object = dict

_encode = JSONEncoder(separators=(",", ":"), check_circular=False).encode
_decode = JSONDecoder().decode


def encode(value: Object) -> bytes:
    return _encode(value).encode("ascii")


def decode(payload: bytes) -> Object:
    """The object in `payload`; `WireError` when it is anything else."""
    try:
        value = _decode(payload.decode("ascii"))
    except (ValueError, RecursionError) as error:  # ValueError: not ASCII, not JSON, or a number too long to read
        raise WireError(f"not a JSON object: {type(error).__name__}") from None
    if not isinstance(value, dict):
        raise WireError("not a JSON object")
    return value


def text(source: Object, key: str, default: str | None = None) -> str:
    """The string under `key`; `WireError` when it is missing (without a default) or of another type."""
    value = source.get(key, default)
    if not isinstance(value, str):
        raise WireError(f"{key!r} is not a string")
    return value


def integer(source: Object, key: str, default: int | None = None) -> int:
    value = source.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise WireError(f"{key!r} is not a whole number")
    return value


def flag(source: Object, key: str, default: bool = False) -> bool:
    value = source.get(key, default)
    if not isinstance(value, bool):
        raise WireError(f"{key!r} is not true or false")
    return value


def texts(source: Object, key: str) -> list[str]:
    value = source.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise WireError(f"{key!r} is not a list of strings")
    return value


def mapping(source: Object, key: str) -> dict[str, str]:
    value = source.get(key, {})
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise WireError(f"{key!r} is not a map of strings")
    return value
