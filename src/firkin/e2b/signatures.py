"""Tokens of a sandbox and the signed file links made from them.

Tokens are derived from the server's secret, so nothing has to be stored and a
restart changes none. A link is ``v1_`` and a SHA-256 over path, operation, user,
token and expiry; the path is the query's value as sent, before it is resolved.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass

READ = "read"
WRITE = "write"


class TokenMint:
    """The two tokens of every sandbox, for its data plane and for its other ports, and the one of every volume."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def data_plane(self, sandbox_id: str) -> str:
        return self._derive(f"envd:{sandbox_id}")

    def traffic(self, sandbox_id: str) -> str:
        return self._derive(f"traffic:{sandbox_id}")

    def volume(self, volume_id: str) -> str:
        return self._derive(f"volume:{volume_id}")

    def _derive(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


def equal(left: str, right: str) -> bool:
    """Compare secrets in a time that tells nothing."""
    return hmac.compare_digest(left.encode("utf-8", "surrogateescape"), right.encode("utf-8", "surrogateescape"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedLink:
    """The part of a file link that is signed. `expires_at` is in Unix seconds."""

    path: str
    operation: str
    username: str
    signature: str
    expires_at: int | None = None

    def matches(self, token: str) -> bool:
        return equal(sign(self.path, self.operation, self.username, token, self.expires_at), self.signature)

    def expired(self, now_s: float) -> bool:
        return self.expires_at is not None and self.expires_at < now_s


def sign(path: str, operation: str, username: str, token: str, expires_at: int | None = None) -> str:
    text = f"{path}:{operation}:{username}:{token}"
    if expires_at is not None:
        text += f":{expires_at}"
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return "v1_" + base64.b64encode(digest).decode().rstrip("=")
