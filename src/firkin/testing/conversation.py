"""The host's side of the wire in its plainest form, to check an agent with nothing else in between."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from firkin.law.ports import ByteChannel
from firkin.wire.codec import Object, decode, encode
from firkin.wire.frames import (
    CANCEL,
    DATA,
    DATA_ERR,
    EOF,
    ERROR,
    EVENT,
    HELLO,
    OPEN,
    RESULT,
    WINDOW,
    FrameReader,
    credit,
    frame,
)

PATIENCE_S = 10.0


@dataclass(slots=True)
class Answer:
    """All that came on one stream. `fault` is the ERROR's object, `result` the RESULT's."""

    events: list[Object] = field(default_factory=list)
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    result: Object | None = None
    fault: Object | None = None
    ended: bool = False

    @property
    def over(self) -> bool:
        return self.result is not None or self.fault is not None


class Conversation:
    """One connection to an agent. Reads only while somebody waits in `until`."""

    def __init__(self, channel: ByteChannel) -> None:
        self._channel = channel
        self._reader = FrameReader()
        self._next = 1
        self.answers: dict[int, Answer] = {}
        self.hello: Object | None = None

    @classmethod
    async def open(cls, channel: ByteChannel) -> Self:
        """Waits for HELLO, which must come first."""
        talk = cls(channel)
        async with asyncio.timeout(PATIENCE_S):
            while talk.hello is None:
                await talk._read()
        return talk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.aclose()

    async def request(self, op: str, **arguments: object) -> int:
        """Open a stream; its number."""
        number, self._next = self._next, self._next + 1
        self.answers[number] = Answer()
        await self._channel.write(frame(OPEN, number, encode({"op": op, **arguments})))
        return number

    async def send(self, number: int, data: bytes) -> None:
        """Send at most one window of bytes on a stream."""
        if len(data) > WINDOW:
            raise ValueError("more than one window; this conversation does not wait for credit")
        for start in range(0, len(data), 1 << 16):
            await self._channel.write(frame(DATA, number, data[start : start + (1 << 16)]))

    async def end(self, number: int) -> None:
        await self._channel.write(frame(EOF, number))

    async def cancel(self, number: int) -> None:
        await self._channel.write(frame(CANCEL, number))

    async def grant(self, number: int, amount: int) -> None:
        await self._channel.write(credit(number, amount))

    async def finished(self, number: int, *, grant: bool = True) -> Answer:
        """Everything up to the end of the stream. `grant` gives back credit for what is read."""
        answer = self.answers[number]
        async with asyncio.timeout(PATIENCE_S):
            while not answer.over:
                before = len(answer.stdout) + len(answer.stderr)
                await self._read()
                taken = len(answer.stdout) + len(answer.stderr) - before
                if grant and taken and not answer.over:
                    await self.grant(number, taken)
        return answer

    async def event(self, number: int, count: int = 1) -> list[Object]:
        """The first `count` events of the stream."""
        answer = self.answers[number]
        async with asyncio.timeout(PATIENCE_S):
            while len(answer.events) < count and not answer.over:
                await self._read()
        return answer.events[:count]

    async def call(self, op: str, **arguments: object) -> Answer:
        return await self.finished(await self.request(op, **arguments))

    async def run(self, *argv: str, **arguments: object) -> Answer:
        """Run a program to its end as root."""
        return await self.call("start", argv=list(argv), env={}, cwd="", user="", stdin=False, pty=None, **arguments)

    async def _read(self) -> None:
        data = await self._channel.read(65536)
        if not data:
            raise ConnectionResetError("the agent closed the connection")
        for kind, number, payload in self._reader.feed(data):
            self._take(kind, number, payload)

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if self.hello is None:
            assert kind == HELLO, f"the first frame is of kind {kind}, not HELLO"
            self.hello = decode(payload)
            return
        answer = self.answers[number]
        assert not answer.over, f"a frame of kind {kind} came after the end of stream {number}"
        if kind == DATA:
            answer.stdout += payload
        elif kind == DATA_ERR:
            answer.stderr += payload
        elif kind == EVENT:
            answer.events.append(decode(payload))
        elif kind == RESULT:
            answer.result = decode(payload)
        elif kind == ERROR:
            answer.fault = decode(payload)
        elif kind == EOF:
            answer.ended = True
