"""Hand-made services, which stand for what listens inside a sandbox, and a client that says exactly what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import httpx

from .conftest import ALICE, RunningServer

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

PATIENCE_S = 10.0


@asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    """A service; yields its port. Its connections are cut at the end."""
    writers: set[asyncio.StreamWriter] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.close()

    service = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield service.sockets[0].getsockname()[1]
    finally:
        for writer in writers:
            writer.transport.abort()
        service.close()
        await service.wait_closed()


def saying(answer: bytes) -> Handler:
    """Answers the first request with exactly these bytes, and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return handle


@asynccontextmanager
async def sandbox(server: RunningServer, **fields: object) -> AsyncIterator[dict[str, str]]:
    async with httpx.AsyncClient(base_url=server.url, headers={"X-API-Key": ALICE}, timeout=PATIENCE_S) as http:
        made = (await http.post("/v2/sandboxes", json={"templateID": "base", **fields})).json()
        try:
            yield made
        finally:
            await http.delete(f"/sandboxes/{made['sandboxID']}")


class Wire:
    """A client's connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self.reader = reader
        self.writer = writer
        self.host = host

    def say(self, first: str, *fields: str, body: bytes = b"", host: bool = True) -> None:
        lines = [first, *([f"Host: {self.host}"] if host else []), *fields, "", ""]
        self.writer.write("\r\n".join(lines).encode() + body)

    async def head(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def exactly(self, count: int) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readexactly(count)

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readuntil(mark)

    async def rest(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()


@asynccontextmanager
async def wire(server: RunningServer, made: dict[str, str], port: int) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Wire(reader, writer, f"{port}-{made['sandboxID']}.sbx.test")
    finally:
        writer.transport.abort()
