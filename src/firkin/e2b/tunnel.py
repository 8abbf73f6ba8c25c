"""Bytes both ways between two channels, until both are through or one breaks."""

from __future__ import annotations

import asyncio

from firkin.law.errors import FirkinError
from firkin.law.ports import ByteChannel
from firkin.lifetimes import children, finish

_CLOSE_WITHIN_S = 5.0
_READ = 256 * 1024


async def tunnel(left: ByteChannel, right: ByteChannel) -> None:
    """Join the two; a half-closed side stays open for the other direction. Closes `left`, never `right`."""
    try:
        async with children() as tasks:
            ways = {
                tasks.start(_copy(left, right), name="tunnel-in"),
                tasks.start(_copy(right, left), name="tunnel-out"),
            }
            while ways:
                done, ways = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                if any(not way.result() for way in done):
                    return
    finally:
        await finish(left.aclose(), within_s=_CLOSE_WITHIN_S)


async def _copy(source: ByteChannel, target: ByteChannel) -> bool:
    """Whether the source ended in order."""
    try:
        while data := await source.read(_READ):
            await target.write(data)
        await target.end()
    except (OSError, FirkinError):
        return False
    return True
