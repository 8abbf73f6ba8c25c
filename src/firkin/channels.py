"""Byte channels over asyncio: the one shape in which bytes reach a guest, whatever carries them."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress


class StreamChannel:
    """A `ByteChannel` over a connected socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, limit: int = 65536) -> bytes:
        try:
            return await self._reader.read(limit)
        except ConnectionError:
            return b""

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def end(self) -> None:
        if self._writer.can_write_eof():
            with suppress(OSError):
                self._writer.write_eof()

    async def aclose(self) -> None:
        self._writer.close()
        with suppress(OSError, asyncio.CancelledError):
            self._writer.transport.abort()


async def over_socket(connected: socket.socket, *, limit: int = 1 << 20) -> StreamChannel:
    """Take over a connected stream socket. `limit` bounds what is read ahead, in bytes."""
    connected.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=connected, limit=limit)
    return StreamChannel(reader, writer)


async def over_unix(path: str, *, within_s: float) -> StreamChannel:
    """Connect to the Unix socket at `path`; OSError or TimeoutError when nobody answers."""
    async with asyncio.timeout(within_s):
        reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
    return StreamChannel(reader, writer)
