"""An answer is broken off with its sandbox, and what follows on the same connection is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from firkin.e2b.exchange import Exchange, Message, Receive, Send
from firkin.e2b.server import serving

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


@asynccontextmanager
async def answering(then: Callable[[Exchange], None], *, whole: bool) -> AsyncIterator[tuple[Reader, Writer]]:
    """A connection to a server whose first answer is given, whole or in part, before `then`; the next is "two"."""
    answered = 0

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        nonlocal answered
        if scope["type"] == "lifespan":
            for _ in ("startup", "shutdown"):
                await send({"type": f"{(await receive())['type']}.complete"})
            return
        exchange = Exchange(scope, receive, send)
        answered += 1
        if answered > 1:
            await exchange.answer(200, b"two")
            return
        if whole:
            await exchange.answer(200, b"one")
        else:
            await exchange.start(200, [])
            await exchange.write(b"one")
        then(exchange)

    async with serving(app, "127.0.0.1", 0, grace_s=0.1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()


async def asked(reader: Reader, writer: Writer, end: bytes) -> bytes:
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(5):
        return await reader.readuntil(end)


async def test_a_request_after_an_answer_that_was_whole_is_served() -> None:
    async with answering(Exchange.break_off, whole=True) as (reader, writer):
        await asked(reader, writer, b"one")
        await asked(reader, writer, b"two")


async def test_an_answer_that_is_not_whole_is_broken_off() -> None:
    async with answering(Exchange.break_off, whole=False) as (reader, writer):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asked(reader, writer, b"two")


async def test_a_tunnel_is_broken_off_although_its_head_was_whole() -> None:
    def tunnel(exchange: Exchange) -> None:
        assert exchange.connection is not None
        exchange.connection.take_over(b"")
        exchange.break_off()

    async with answering(tunnel, whole=False) as (reader, writer):
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asked(reader, writer, b"two")


async def test_what_has_begun_inside_is_not_repeatable() -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Message) -> None: ...

    exchange = Exchange({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
    assert await exchange.body(10) == await exchange.body(10) == b"{}"
    assert exchange.repeatable
    exchange.commit()
    assert not exchange.repeatable
