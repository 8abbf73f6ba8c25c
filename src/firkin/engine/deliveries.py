"""One event on its way to one webhook: signed as E2B's are, posted once, bounded in time.

The signature is the unpadded base64 of the SHA-256 of the secret followed by the
body; receivers that check E2B's webhooks check these.

Receivers are strangers. Nothing is read of an answer but its status, in bounded
heads of bounded number, and no text of ours repeats the address, which may hold a
token of theirs.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import ssl
import uuid
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from firkin.version import VERSION

ANSWER_WITHIN_S = 10.0
_MOST_SAID = 300
_MOST_HEAD = 64 * 1024
_MOST_INFORMATIONAL = 8


class NotDelivered(Exception):
    """The receiver did not take it; the text says why, in a few words."""


class Courier:
    """Posts events. Redirects are not followed: the operator named the address, and nobody else does."""

    def __init__(self) -> None:
        self._tls: ssl.SSLContext | None = None

    async def deliver(self, url: str, secret: str, webhook_id: str, event: Mapping[str, object]) -> None:
        """Return once the receiver has said yes (2xx). Raises `NotDelivered`."""
        body = json.dumps(event, separators=(",", ":")).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "user-agent": f"firkin/{VERSION}",
            "e2b-webhook-id": webhook_id,
            "e2b-delivery-id": str(uuid.uuid4()),
            "e2b-signature-version": "v1",
            "e2b-signature": sign(secret, body),
        }
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                status = await self._post(urlsplit(url), headers, body)
        except TimeoutError:
            raise NotDelivered(f"no answer within {ANSWER_WITHIN_S:g} s") from None
        except asyncio.IncompleteReadError:
            raise NotDelivered("it closed the connection without an answer") from None
        except (OSError, ValueError, asyncio.LimitOverrunError) as error:
            raise NotDelivered(_short(_reason(error))) from error
        if not 200 <= status < 300:
            raise NotDelivered(f"it answered {status}")

    async def _post(self, url: SplitResult, headers: Mapping[str, str], body: bytes) -> int:
        secure = url.scheme == "https"
        if secure and self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        port = url.port or (443 if secure else 80)
        reader, writer = await asyncio.open_connection(
            url.hostname, port, ssl=self._tls if secure else None, limit=_MOST_HEAD
        )
        try:
            target = (url.path or "/") + (f"?{url.query}" if url.query else "")
            host = url.netloc.rpartition("@")[2]
            lines = [
                f"POST {target} HTTP/1.1",
                f"host: {host}",
                *(f"{name}: {value}" for name, value in headers.items()),
            ]
            writer.write("\r\n".join([*lines, "", ""]).encode("ascii") + body)
            await writer.drain()
            return await _status(reader)
        finally:
            writer.transport.abort()


async def _status(reader: asyncio.StreamReader) -> int:
    """The status of the answer itself, behind any of 1xx."""
    for _ in range(_MOST_INFORMATIONAL):
        head = await reader.readuntil(b"\r\n\r\n")
        version, _, rest = head.partition(b" ")
        code = rest[:3]
        if not version.startswith(b"HTTP/1.") or not code.isdigit() or rest[3:4] not in (b" ", b"\r"):
            raise ValueError("it gave no valid HTTP answer")
        if int(code) >= 200:
            return int(code)
    raise ValueError(f"it answered with more than {_MOST_INFORMATIONAL} heads of status 1xx")


def sign(secret: str, body: bytes) -> str:
    """What the header ``e2b-signature`` holds."""
    return base64.b64encode(hashlib.sha256(secret.encode() + body).digest()).decode().rstrip("=")


def _reason(error: Exception) -> str:
    """The system's own words where there are some: a library's may hold the address."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if isinstance(number, int) and number > 0 else str(error) or type(error).__name__


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MOST_SAID else f"{line[: _MOST_SAID - 1]}…"
