"""Sealing what must not lie readable on the disk: AES-256-GCM under a key of this state folder.

The key is derived (HKDF) from the server's secret, so the database alone, or a
backup of it, opens nothing. What a sealed text belongs to is authenticated with it: moved to
another row it does not open.
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE = 12
_PURPOSE = b"firkin secrets, version 1"


class CannotOpen(Exception):
    """The text was sealed under another key, for another place, or was changed. The exception says no more."""


class Seal:
    """Seals and opens. Each sealing has a random nonce: 2^32 of them are safe, a billion times what a node does.

    A server without secrets never loads the library: that takes it 30 ms and some megabytes.
    """

    def __init__(self, server_secret: bytes) -> None:
        self._server_secret = server_secret

    @cached_property
    def _cipher(self) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        key = HKDF(algorithm=SHA256(), length=32, salt=None, info=_PURPOSE).derive(self._server_secret)
        return AESGCM(key)

    def close(self, text: str, *place: str) -> bytes:
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, text.encode(), _bound_to(place))

    def open(self, sealed: bytes, *place: str) -> str:
        """Raises `CannotOpen`."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], _bound_to(place)).decode()
        except (InvalidTag, ValueError):
            raise CannotOpen from None


def _bound_to(place: tuple[str, ...]) -> bytes:
    return json.dumps(place).encode()
