"""The host's end of a machine's trunk: many conversations with the agent through one serial port.

See `firkin.guest.trunk` for how a session begins. What comes out of the machine
is hostile: a broken frame, an unknown kind or more data than was granted ends
the session and all conversations with it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from contextlib import suppress

from firkin.guest.trunk import NONCE
from firkin.lifetimes import Children
from firkin.wire import codec
from firkin.wire.codec import Object
from firkin.wire.frames import (
    CANCEL,
    CHUNK,
    CREDIT,
    DATA,
    EOF,
    ERROR,
    EVENT,
    GRANT_AT,
    OPEN,
    RESULT,
    WINDOW,
    FrameReader,
    WireError,
    credit,
    credit_amount,
    frame,
)

_RECEIVE = 256 * 1024
_MOST_CREDIT = 1 << 31
_STALE = 64 << 20  # what an earlier session may have left on its way to us


class Trunk:
    """One session. `open` begins it; when the machine or the session ends, every channel reads its end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader()
        self._streams: dict[int, TrunkChannel] = {}
        self._answers: dict[int, asyncio.Future[Object]] = {}
        self._next = 1
        self._tasks = Children()
        self.closed = False

    @classmethod
    async def open(cls, trunk_path: str, reset_path: str, *, within_s: float) -> Trunk:
        """Raises `OSError` or `TimeoutError` when the agent does not answer."""
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_unix_connection(trunk_path, limit=1 << 20)
            try:
                acknowledged, resetting = await asyncio.open_unix_connection(reset_path)
                try:
                    await _synchronise(reader, writer, acknowledged, resetting)
                finally:
                    resetting.close()
            except BaseException:
                writer.transport.abort()
                raise
        trunk = cls(reader, writer)
        trunk._tasks.start(trunk._receive(), name="trunk")
        return trunk

    async def dial(self) -> TrunkChannel:
        """A new conversation with the agent. `ConnectionError` when it cannot be begun."""
        stream = self._number()
        channel = TrunkChannel(self, stream)
        self._streams[stream] = channel
        await self.send(frame(OPEN, stream, codec.encode({"op": "dial"})))
        return channel

    async def ask(self, operation: str, *, within_s: float, **arguments: str | int | bool) -> Object:
        """One request about the machine as a whole. `ConnectionError` when it is refused or none can be answered."""
        stream = self._number()
        answer: asyncio.Future[Object] = asyncio.get_running_loop().create_future()
        self._answers[stream] = answer
        try:
            await self.send(frame(OPEN, stream, codec.encode({"op": operation, **arguments})))
            async with asyncio.timeout(within_s):
                return await answer
        finally:
            self._answers.pop(stream, None)

    async def send(self, data: bytes) -> None:
        if self.closed:
            raise ConnectionResetError("the machine is gone")
        self._writer.write(data)
        await self._writer.drain()

    def send_soon(self, data: bytes) -> None:
        if not self.closed:
            self._writer.write(data)

    def forget(self, stream: int) -> None:
        self._streams.pop(stream, None)

    async def aclose(self) -> None:
        self._end()
        with suppress(Exception):
            await self._tasks.aclose()

    def abort(self) -> None:
        """As `aclose`, without waiting."""
        self._end()

    def _number(self) -> int:
        stream, self._next = self._next, self._next + 1
        return stream

    def _end(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._writer.transport.abort()
        for channel in list(self._streams.values()):
            channel.ended(lost=True)
        self._streams.clear()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError("the machine is gone"))

    async def _receive(self) -> None:
        try:
            while data := await self._reader.read(_RECEIVE):
                for kind, stream, payload in self._frames.feed(data):
                    self._route(kind, stream, payload)
        except (WireError, OSError):
            pass
        finally:
            self._end()

    def _route(self, kind: int, stream: int, payload: bytes) -> None:
        answer = self._answers.get(stream)
        if answer is not None:
            if kind == RESULT and not answer.done():
                answer.set_result(codec.decode(payload))
            elif kind == ERROR and not answer.done():
                answer.set_exception(ConnectionRefusedError(str(codec.decode(payload).get("message", ""))[:300]))
            return
        channel = self._streams.get(stream)
        if channel is None:  # it was closed while this was under way
            return
        if kind == DATA:
            channel.arrived(payload)
        elif kind == CREDIT:
            channel.granted(credit_amount(payload))
        elif kind in (EOF, RESULT, ERROR):
            channel.ended(lost=kind != EOF)
        elif kind != EVENT:
            raise WireError(f"frame kind {kind} does not belong on a trunk")


class TrunkChannel:
    """A `ByteChannel`: one conversation with the agent."""

    def __init__(self, trunk: Trunk, stream: int) -> None:
        self._trunk = trunk
        self._stream = stream
        self._pieces: deque[bytes] = deque()
        self._ended = False
        self._lost = False
        self._allowance = WINDOW
        self._taken = 0
        self._credit = WINDOW
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    async def read(self, limit: int = 65536) -> bytes:
        while not self._pieces:
            if self._ended:
                return b""
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        piece = self._pieces.popleft()
        if len(piece) > limit:
            self._pieces.appendleft(piece[limit:])
            piece = piece[:limit]
        self._taken += len(piece)
        if self._taken >= GRANT_AT and not self._ended:
            self._allowance += self._taken
            self._trunk.send_soon(credit(self._stream, self._taken))
            self._taken = 0
        return piece

    async def write(self, data: bytes) -> None:
        """Raises `ConnectionResetError` when the conversation is over."""
        rest = memoryview(data)
        while rest:
            while self._credit <= 0 and not self._lost:
                self._writer = asyncio.get_running_loop().create_future()
                await self._writer
            if self._lost:
                raise ConnectionResetError("the connection was lost")
            piece = rest[: min(self._credit, CHUNK)]
            self._credit -= len(piece)
            rest = rest[len(piece) :]
            await self._trunk.send(frame(DATA, self._stream, bytes(piece)))

    async def end(self) -> None:
        if not self._lost:
            self._trunk.send_soon(frame(EOF, self._stream))

    async def aclose(self) -> None:
        if not self._lost:
            self._trunk.send_soon(frame(CANCEL, self._stream))
        self._trunk.forget(self._stream)
        self.ended(lost=True)

    def arrived(self, payload: bytes) -> None:
        self._allowance -= len(payload)
        if self._allowance < 0:
            raise WireError("more data than was granted")
        self._pieces.append(payload)
        _wake(self._reader)

    def granted(self, amount: int) -> None:
        self._credit += amount
        if self._credit > _MOST_CREDIT:
            raise WireError("more credit than anybody can use")
        _wake(self._writer)

    def ended(self, *, lost: bool) -> None:
        self._ended = True
        self._lost = self._lost or lost
        if lost:
            self._trunk.forget(self._stream)
        _wake(self._reader)
        _wake(self._writer)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


async def _synchronise(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    acknowledged: asyncio.StreamReader,
    resetting: asyncio.StreamWriter,
) -> None:
    nonce = secrets.token_bytes(NONCE)
    resetting.write(b"reset " + nonce.hex().encode() + b"\n")
    await resetting.drain()
    wanted = b"ready " + nonce.hex().encode() + b"\n"
    heard = b""
    while not heard.endswith(wanted):
        heard = heard[-len(wanted) :] + await _more(acknowledged)
    writer.write(nonce)
    await writer.drain()
    seen, dropped = b"", 0
    while nonce not in seen:
        dropped += len(seen)
        if dropped > _STALE:
            raise ConnectionResetError("the agent does not begin anew")
        seen = seen[-NONCE:] + await _more(reader)
    if not seen.endswith(nonce):
        raise ConnectionResetError("the agent said something before it was asked")


async def _more(reader: asyncio.StreamReader) -> bytes:
    data = await reader.read(_RECEIVE)
    if not data:
        raise ConnectionResetError("the machine has hung up")
    return data
