"""The listening server itself: how it starts, and how it ends."""

from __future__ import annotations

import asyncio
import socket

import pytest

from firkin.e2b.exchange import Exchange, Message, Receive, Send
from firkin.e2b.server import serve, serving
from firkin.law.errors import IoFailure


async def endless(scope: Message, receive: Receive, send: Send) -> None:
    """Answers with a stream that never ends by itself."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    exchange = Exchange(scope, receive, send)
    await exchange.start(200, [])
    await exchange.write(b"begun")
    await exchange.disconnected()


@pytest.mark.thorough
async def test_a_stopped_server_cuts_streams_after_its_grace() -> None:
    async with serving(endless, "127.0.0.1", 0, grace_s=0.1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"begun")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(100), 5)
    writer.close()


@pytest.mark.thorough
async def test_serving_ends_when_it_is_told_to() -> None:
    stop, ports = asyncio.Event(), asyncio.Queue[int]()
    running = asyncio.create_task(serve(endless, "127.0.0.1", 0, announce=ports.put_nowait, stop=stop, grace_s=0.1))
    assert await asyncio.wait_for(ports.get(), 10) > 0
    stop.set()
    await asyncio.wait_for(running, 10)


async def test_an_address_in_use_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(IoFailure, match="cannot listen on"):
            async with serving(endless, "127.0.0.1", taken.getsockname()[1]):
                pass
