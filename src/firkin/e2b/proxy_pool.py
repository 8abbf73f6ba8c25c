"""Connections into sandboxes that can take another request.

Only a channel that can say that it is quiet is kept: few for each port, for a
short time, and none beyond its sandbox. A service that handles one connection
at a time waits for a kept one as long as for any slow client: hence the short time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol, TypeAlias, TypeGuard

from firkin.law.ports import ByteChannel
from firkin.lifetimes import finish

KEPT_S = 2.0
MAX_A_PORT = 32
MAX_IN_ALL = 1024
_CLOSE_WITHIN_S = 5.0

Key: TypeAlias = tuple[str, int]


class ReusableChannel(ByteChannel, Protocol):
    """A channel that knows whether the other end has said anything."""

    @property
    def quiet(self) -> bool: ...

    def abort(self) -> None: ...


class ChannelPool:
    """Kept channels by sandbox id and port."""

    def __init__(self) -> None:
        self._kept: dict[Key, deque[tuple[float, ReusableChannel]]] = {}
        self._count = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def take(self, key: Key) -> ByteChannel | None:
        """The one that was used last, if it is still good."""
        kept = self._kept.get(key)
        while kept:
            _, channel = kept.pop()
            self._count -= 1
            if channel.quiet:
                return channel
            channel.abort()
        return None

    async def give(self, key: Key, channel: ByteChannel) -> None:
        """Keep it, or close it."""
        kept = self._kept.setdefault(key, deque())
        if (
            self._closed
            or not _is_reusable(channel)
            or not channel.quiet
            or len(kept) >= MAX_A_PORT
            or self._count >= MAX_IN_ALL
        ):
            await close(channel)
            return
        loop = asyncio.get_running_loop()
        kept.append((loop.time() + KEPT_S, channel))
        self._count += 1
        if self._sweeper is None:
            self._sweeper = loop.call_later(KEPT_S, self._sweep)

    def forget(self, sandbox_id: str) -> None:
        """Close all that lead into that sandbox."""
        for key in [key for key in self._kept if key[0] == sandbox_id]:
            for _, channel in self._kept.pop(key):
                self._count -= 1
                channel.abort()

    def close(self) -> None:
        """Close all, and keep none from here on."""
        self._closed = True
        for sandbox_id in {key[0] for key in self._kept}:
            self.forget(sandbox_id)
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for key, kept in list(self._kept.items()):
            while kept and kept[0][0] <= now:
                kept.popleft()[1].abort()
                self._count -= 1
            if not kept:
                del self._kept[key]
        soonest = min((kept[0][0] for kept in self._kept.values()), default=None)
        self._sweeper = None if soonest is None else loop.call_at(soonest, self._sweep)


async def close(channel: ByteChannel) -> None:
    """Close at once where that is possible, else within a bounded time, also when cancelled."""
    if _is_reusable(channel):
        channel.abort()
    else:
        await finish(channel.aclose(), within_s=_CLOSE_WITHIN_S)


def _is_reusable(channel: ByteChannel) -> TypeGuard[ReusableChannel]:
    return hasattr(channel, "quiet") and hasattr(channel, "abort")
