"""The operator: whoever can read the server's secret. He may do what no API key allows."""

from __future__ import annotations

import hashlib
import hmac

OPERATOR_HEADER = "x-firkin-operator"


def operator_token(secret: bytes) -> str:
    """What proves it, without showing the secret."""
    return hmac.new(secret, b"firkin operator", hashlib.sha256).hexdigest()
