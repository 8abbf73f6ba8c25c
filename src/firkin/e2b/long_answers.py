"""Answers of many entries: made into JSON and sent in pieces, so that others have the event loop between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from firkin.e2b.exchange import JSON, ClientGone, Exchange
from firkin.e2b.json_text import encode

SLICE = 200
_TAKEN_WITHIN_S = 60.0
T = TypeVar("T")


async def encoded(entries: Sequence[T], describe: Callable[[T], object]) -> list[bytes]:
    """The pieces of a JSON array."""
    pieces = []
    for start in range(0, len(entries), SLICE):
        if start:
            await asyncio.sleep(0)
        text = encode([describe(entry) for entry in entries[start : start + SLICE]])
        pieces.append((b"," if start else b"[") + text[1:-1])
    return [*pieces, b"]"] if pieces else [b"[]"]


async def answer_pieces(exchange: Exchange, pieces: Sequence[bytes]) -> None:
    """A whole answer of JSON. Broken off, with `ClientGone`, when the client stops taking it."""
    await exchange.start(200, [JSON, (b"content-length", b"%d" % sum(map(len, pieces)))])
    try:
        for piece in pieces:
            async with asyncio.timeout(_TAKEN_WITHIN_S):
                await exchange.write(piece)
    except TimeoutError:
        exchange.break_off()
        raise ClientGone from None
    await exchange.write(b"", more=False)
