"""A stream of events on its way to a client.

Ends when the source ends, the client leaves, the deadline passes or the sandbox
dies. Death is told by resetting the connection, after the sandbox reads as dead.
Not reading stops the source: between it and the client only a few events wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Generic, Protocol, TypeVar

from firkin.e2b.calls import DEADLINE_PASSED, STREAM_HEADERS, RpcCall
from firkin.e2b.connect_codec import Code, RpcError, end_of_stream
from firkin.e2b.error_map import as_rpc_error, is_gone
from firkin.law.errors import FirkinError, SandboxUnavailable
from firkin.lifetimes import children
from firkin.phases import mark

T = TypeVar("T", covariant=True)
_WAITING = 16
_MAX_WRITE = 256 * 1024
_CLOSE_WITHIN_S = 5.0


class Source(Protocol[T]):
    """What the law's streams have in common."""

    def __aiter__(self) -> AsyncIterator[T]: ...

    async def aclose(self) -> None: ...


class _End:
    """The source is through; with an error, that is what the client is told."""

    def __init__(self, error: RpcError | FirkinError | None = None) -> None:
        self.error = error


class EventStream(Generic[T]):
    """Sends `first`, then each event as `encode` writes it (None: left out; `RpcError` raised: the end)."""

    def __init__(
        self,
        call: RpcCall,
        source: Source[T],
        *,
        first: bytes,
        keepalive: bytes,
        encode: Callable[[T], bytes | None],
    ) -> None:
        self._call = call
        self._source = source
        self._first = first
        self._keepalive = keepalive
        self._encode = encode
        self._waiting: asyncio.Queue[bytes | _End] = asyncio.Queue(_WAITING)
        self._complete = False

    async def run(self) -> None:
        exchange = self._call.exchange
        try:
            with self._call.directory.holding(self._call.sandbox_id, exchange):
                async with children() as tasks:
                    sending = tasks.start(self._send_all(), name="stream-send")
                    reading = tasks.start(self._read_all(), name="stream-read")
                    gone = tasks.start(exchange.disconnected(), name="stream-client")
                    await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
                    reading.cancel()
        finally:
            async with asyncio.timeout(_CLOSE_WITHIN_S):
                await self._source.aclose()

    def ends_with(self) -> None:
        """Told by `encode`: the event just written is the source's own last."""
        self._complete = True

    async def _read_all(self) -> None:
        end = _End()
        try:
            async for event in self._source:
                data = self._encode(event)
                if data is not None:
                    mark(type(event).__name__)
                    await self._waiting.put(data)
                if self._complete:
                    break
            else:
                end = _End(SandboxUnavailable("read events", self._call.sandbox_id, "its stream broke off"))
        except (RpcError, FirkinError) as error:
            end = _End(error)
        await self._waiting.put(end)

    async def _send_all(self) -> None:
        exchange = self._call.exchange
        await asyncio.sleep(0)  # let the reader run: output that is already there goes out with the first event
        await exchange.start(200, STREAM_HEADERS)
        data, end = self._ready(self._first)
        try:
            async with asyncio.timeout(self._call.deadline_s):
                while end is None:
                    await exchange.write(data)
                    data, end = self._ready(await self._next())
        except TimeoutError:
            data, end = b"", _End(RpcError(Code.DEADLINE_EXCEEDED, DEADLINE_PASSED))
        await self._finish(data, end)

    async def _next(self) -> bytes | _End:
        try:
            async with asyncio.timeout(self._call.keepalive_s):
                return await self._waiting.get()
        except TimeoutError:
            return self._keepalive

    def _ready(self, item: bytes | _End) -> tuple[bytes, _End | None]:
        """`item` and all that waits behind it, as one write."""
        parts: list[bytes] = []
        size = 0
        while not isinstance(item, _End):
            parts.append(item)
            size += len(item)
            if size >= _MAX_WRITE or self._waiting.empty():
                return b"".join(parts), None
            item = self._waiting.get_nowait()
        return b"".join(parts), item

    async def _finish(self, data: bytes, end: _End) -> None:
        """The last `data` and the end, as one write: a short command is one packet less."""
        error = end.error
        if isinstance(error, FirkinError):
            if is_gone(error):
                await self._call.exchange.write(data)
                if await self._reset_if_dead():
                    return
                data = b""
            error = as_rpc_error(error)
        await self._call.exchange.write(data + end_of_stream(error), more=False)
        mark("answer")

    async def _reset_if_dead(self) -> bool:
        connection = self._call.exchange.connection
        if connection is None or not await self._call.directory.reads_as_dead(self._call.sandbox_id):
            return False
        connection.reset()
        return True
