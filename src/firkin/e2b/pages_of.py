"""Lists in pages that stay right while things come and go: a token names the last thing shown, not a position."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

from firkin.e2b.exchange import Exchange, Header, Refused
from firkin.e2b.models import query_int

T = TypeVar("T")
Position = tuple[datetime, str]
MAX_PAGE = 100


def token(position: Position) -> str:
    """The page token that continues behind `position`: an instant and an id."""
    when, name = position
    text = f"{when.astimezone(UTC).strftime('%Y-%m-%dT%H:%M:%S.%fZ')}__{name}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def read_token(text: str) -> Position:
    """Raises `Refused` (400)."""
    try:
        when, _, name = base64.urlsafe_b64decode(text).decode("ascii").partition("__")
        at = datetime.fromisoformat(when)
        if at.tzinfo is None:
            raise ValueError("an instant without a time zone")
        return at, name
    except (binascii.Error, ValueError):
        raise Refused(
            400, "nextToken is not a token of this server; take it from X-Next-Token", should_retry=False
        ) from None


def read_page(exchange: Exchange) -> tuple[Position | None, int]:
    """Behind what, and how much: ``nextToken`` and ``limit``. Raises `Refused` (400)."""
    limit = query_int(exchange, "limit", default=MAX_PAGE, least=1, most=MAX_PAGE) or MAX_PAGE
    text = exchange.query.get("nextToken")
    return read_token(text) if text else None, limit


def page(found: Sequence[tuple[Position, T]], *, after: Position | None, limit: int) -> tuple[list[T], list[Header]]:
    """The first `limit` behind `after` of what is in order, newest first, and the header for the next page."""
    rest = [pair for pair in found if after is None or pair[0] < after]
    shown = rest[:limit]
    headers = [(b"x-next-token", token(shown[-1][0]).encode())] if len(rest) > len(shown) else []
    return [thing for _, thing in shown], headers
