"""Bytes between two coroutines: bounded pipes, and the two ends of a connection."""

from __future__ import annotations

import asyncio
from typing import Protocol

PIPE_CAPACITY = 64 * 1024
CHANNEL_CAPACITY = 1 << 20


class BrokenPipe(Exception):
    """Nobody will read what was written."""


class Source(Protocol):
    async def read(self, limit: int = 65536) -> bytes:
        """Up to `limit` bytes; empty at the end."""
        ...


class Sink(Protocol):
    async def write(self, data: bytes) -> None: ...


class Nothing:
    """/dev/null, both ways."""

    async def read(self, limit: int = 65536) -> bytes:
        return b""

    async def write(self, data: bytes) -> None:
        return None


class Fixed:
    """A source of bytes that are already there."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self, limit: int = 65536) -> bytes:
        part, self._data = self._data[:limit], self._data[limit:]
        return part


class Collected:
    """A sink that keeps everything, for command substitution. `limit` bounds it, in bytes."""

    def __init__(self, limit: int = 16 << 20) -> None:
        self.data = bytearray()
        self._limit = limit

    async def write(self, data: bytes) -> None:
        if len(self.data) + len(data) > self._limit:
            raise BrokenPipe
        self.data += data


class Pipe:
    """As pipe(2): a full one makes the writer wait, a closed one ends reader or writer."""

    def __init__(self, capacity: int = PIPE_CAPACITY) -> None:
        self._buffer = bytearray()
        self._capacity = capacity
        self._unread = False
        self._waiting: set[asyncio.Future[None]] = set()
        self.ended = False

    async def read(self, limit: int = 65536) -> bytes:
        while not self._buffer and not self.ended and not self._unread:
            await self._moved()
        part = bytes(self._buffer[:limit])
        del self._buffer[:limit]
        self._stir()
        return part

    async def write(self, data: bytes) -> None:
        while data:
            if self._unread or self.ended:
                raise BrokenPipe
            room = self._capacity - len(self._buffer)
            if room <= 0:
                await self._moved()
                continue
            self._buffer += data[:room]
            data = data[room:]
            self._stir()

    def end(self) -> None:
        """No more will be written; what is there can still be read."""
        self.ended = True
        self._stir()

    def abandon(self) -> None:
        """No more will be read; a waiting writer gets `BrokenPipe`."""
        self._unread = True
        self._buffer.clear()
        self._stir()

    async def _moved(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)

    def _stir(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)


class MemoryChannel:
    """One end of a connection: a `firkin.law.ports.ByteChannel`."""

    def __init__(self, incoming: Pipe, outgoing: Pipe) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    async def read(self, limit: int = 65536) -> bytes:
        return await self._incoming.read(limit)

    async def write(self, data: bytes) -> None:
        """Raises `ConnectionError` once the other end is gone."""
        try:
            await self._outgoing.write(data)
        except BrokenPipe:
            raise ConnectionResetError("the other end is gone") from None

    async def end(self) -> None:
        self._outgoing.end()

    async def aclose(self) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        """Close at once. Idempotent."""
        self._outgoing.end()
        self._incoming.abandon()


def connection(capacity: int = CHANNEL_CAPACITY) -> tuple[MemoryChannel, MemoryChannel]:
    """Both ends of a new connection."""
    there, back = Pipe(capacity), Pipe(capacity)
    return MemoryChannel(back, there), MemoryChannel(there, back)
