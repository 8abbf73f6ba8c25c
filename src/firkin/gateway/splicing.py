"""Bytes both ways, untouched, until both ends have said their last; half-closed connections stay so."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from firkin.gateway.dialling import Stream
from firkin.lifetimes import children

IDLE_S = 3600.0
_PIECE = 1 << 18


async def splice(guest: Stream, server: Stream) -> None:
    """Return when both directions have ended, or one broke, or nothing moved for an hour."""
    try:
        await _both(guest, server)
    except BaseException:  # cut, or a fault: neither end may think that it was the end
        for stream in (guest, server):
            stream.writer.transport.abort()
        raise
    for stream in (guest, server):
        stream.writer.close()


async def _both(guest: Stream, server: Stream) -> None:
    async with children() as flows:
        up = flows.start(_flow(guest, server), name="up")
        down = flows.start(_flow(server, guest), name="down")
        done, _ = await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        if all(task.result() for task in done):
            await asyncio.wait((up, down))


async def _flow(source: Stream, sink: Stream) -> bool:
    """Whether it ended in order."""
    try:
        while True:
            async with asyncio.timeout(IDLE_S):
                piece = await source.reader.read(_PIECE)
            if not piece:
                break
            sink.writer.write(piece)
            await sink.writer.drain()
        if sink.writer.can_write_eof():
            sink.writer.write_eof()
            return True
    except (OSError, TimeoutError):
        with suppress(OSError):
            sink.writer.transport.abort()
        return False
    return False
