"""A conversation that is begun when somebody first reads or writes: with a machine that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from firkin.drivers.qemu.trunk import TrunkChannel
from firkin.law.errors import SandboxUnavailable


class LateChannel:
    """A `ByteChannel` over a channel that there is not yet. Waiting for it has no end of its own."""

    def __init__(self, dial: Callable[[], Awaitable[TrunkChannel]]) -> None:
        self._dial = dial
        self._channel: TrunkChannel | None = None
        self._lock = asyncio.Lock()
        self._closed = False

    async def read(self, limit: int = 65536) -> bytes:
        try:
            return await (await self._begun()).read(limit)
        except SandboxUnavailable:
            return b""

    async def write(self, data: bytes) -> None:
        try:
            await (await self._begun()).write(data)
        except SandboxUnavailable as error:
            raise ConnectionResetError(str(error)) from error

    async def end(self) -> None:
        await (await self._begun()).end()

    async def aclose(self) -> None:
        self._closed = True
        if self._channel is not None:
            await self._channel.aclose()

    async def _begun(self) -> TrunkChannel:
        async with self._lock:
            if self._channel is None:
                self._channel = await self._dial()
                if self._closed:
                    await self._channel.aclose()
            return self._channel
