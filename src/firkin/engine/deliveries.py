"""One event on its way to one webhook: signed as E2B's are, posted once, bounded in time.

The signature is the unpadded base64 of the SHA-256 of the secret followed by the
body; receivers that check E2B's webhooks check these.
"""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp

from firkin.version import VERSION

ANSWER_WITHIN_S = 10.0
_MOST_SAID = 300


class NotDelivered(Exception):
    """The receiver did not take it; the text says why, in a few words."""


class Courier:
    """Posts events. Redirects are not followed: the operator named the address, and nobody else does."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Courier]:
        timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(
            timeout=timeout, connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        ) as session:
            yield cls(session)

    async def deliver(self, url: str, secret: str, webhook_id: str, event: Mapping[str, object]) -> None:
        """Return once the receiver has said yes (2xx). Raises `NotDelivered`."""
        body = json.dumps(event, separators=(",", ":")).encode()
        headers = {
            "content-type": "application/json",
            "user-agent": f"firkin/{VERSION}",
            "e2b-webhook-id": webhook_id,
            "e2b-delivery-id": str(uuid.uuid4()),
            "e2b-signature-version": "v1",
            "e2b-signature": sign(secret, body),
        }
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                status = answer.status
        except TimeoutError:
            raise NotDelivered(f"no answer within {ANSWER_WITHIN_S:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise NotDelivered(_short(str(error) or type(error).__name__)) from error
        if not 200 <= status < 300:
            raise NotDelivered(f"it answered {status}")


def sign(secret: str, body: bytes) -> str:
    """What the header ``e2b-signature`` holds."""
    return base64.b64encode(hashlib.sha256(secret.encode() + body).digest()).decode().rstrip("=")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_SAID else f"{line[: _MOST_SAID - 1]}…"
