"""API keys: who is asking. A wrong key, a missing key and an unknown key read alike."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from firkin.law.errors import InvalidReason, InvalidSpec


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One tenant. `max_sandboxes` is how many it may have alive at once; None is no quota."""

    name: str
    key: str = field(repr=False)
    max_sandboxes: int | None = None


class KeyRing:
    """Finds the tenant of a key in a time that does not depend on how much of it was right."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        if not keys or any(not key.key or not key.name for key in keys):
            raise _invalid("at least one API key with a name is needed")
        if len({key.name for key in keys}) != len(keys) or len({key.key for key in keys}) != len(keys):
            raise _invalid("two API keys share a name or a value")
        self._keys = [(_digest(key.key.encode()), key) for key in keys]

    @property
    def names(self) -> frozenset[str]:
        return frozenset(key.name for _, key in self._keys)

    def tenant(self, presented: bytes | None) -> ApiKey | None:
        digest = _digest(presented or b"")
        found = None
        for known, key in self._keys:  # all of them, always: the time must not tell which
            if hmac.compare_digest(known, digest):
                found = key
        return found


def presented_key(api_key: bytes | None, authorization: bytes | None) -> bytes | None:
    """The key out of ``X-API-Key``, else out of ``Authorization: Bearer KEY``."""
    if api_key is not None:
        return api_key.strip()
    scheme, _, value = (authorization or b"").partition(b" ")
    return value.strip() if scheme.lower() == b"bearer" else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _invalid(detail: str) -> InvalidSpec:
    return InvalidSpec("read API keys", InvalidReason.INVALID_SETTINGS, detail)
