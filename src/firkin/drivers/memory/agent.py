"""The agent's side of the wire for an instance in memory: connections, streams, and which operation answers what."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

from firkin.drivers.memory.machine import Machine
from firkin.drivers.memory.pipes import MemoryChannel
from firkin.drivers.memory.processes import STDERR
from firkin.drivers.memory.tree import Fault
from firkin.lifetimes import children
from firkin.wire.codec import Object, decode, encode
from firkin.wire.frames import (
    CANCEL,
    CHUNK,
    CREDIT,
    DATA,
    DATA_ERR,
    EOF,
    ERROR,
    EVENT,
    HELLO,
    OPEN,
    PROTOCOL,
    RESULT,
    WINDOW,
    FrameReader,
    WireError,
    credit,
    credit_amount,
    frame,
)

MAX_STREAMS = 4096


class Stream:
    """One request: what comes in, and what goes out as far as credit allows."""

    def __init__(self, number: int, connection: Connection) -> None:
        self.number = number
        self.connection = connection
        self.credit = WINDOW
        self.on_credit: Callable[[], None] | None = None
        self._granted = WINDOW
        self._arrived: deque[bytes | None] = deque()
        self._wake = asyncio.Event()

    # -- out ------------------------------------------------------------------------------------

    def event(self, facts: Object) -> None:
        self.connection.send(frame(EVENT, self.number, encode(facts)))

    def result(self, facts: Object) -> None:
        self.connection.send(frame(RESULT, self.number, encode(facts)))

    def error(self, fault: Fault) -> None:
        facts = {"code": fault.code, "message": fault.message}
        if fault.path is not None:
            facts["path"] = fault.path
        self.connection.send(frame(ERROR, self.number, encode(facts)))

    def output(self, kind: str, data: bytes) -> None:
        """Send a process's output; the process has looked at `credit` before."""
        self.credit -= len(data)
        for start in range(0, len(data), CHUNK):
            part = data[start : start + CHUNK]
            self.connection.send(frame(DATA_ERR if kind == STDERR else DATA, self.number, part))

    async def data(self, data: bytes) -> None:
        """Send bytes, waiting for credit."""
        while data:
            if self.credit <= 0:
                self._wake.clear()
                await self._wake.wait()
                continue
            part, data = data[: min(self.credit, CHUNK)], data[min(self.credit, CHUNK) :]
            self.credit -= len(part)
            self.connection.send(frame(DATA, self.number, part))
            await self.connection.drained()

    def eof(self) -> None:
        self.connection.send(frame(EOF, self.number))

    # -- in -------------------------------------------------------------------------------------

    def arrive(self, kind: int, payload: bytes) -> None:
        if kind == CREDIT:
            self.credit += credit_amount(payload)
            if self.on_credit is not None:
                self.on_credit()
        elif kind == DATA:
            self._granted -= len(payload)
            if self._granted < 0:
                raise WireError(f"stream {self.number} sent more than its credit")
            self._arrived.append(payload)
        elif kind == EOF:
            self._arrived.append(None)
        else:
            raise WireError(f"frame kind {kind} does not come from the host")
        self._wake.set()

    async def receive(self) -> bytes | None:
        """The next bytes from the host, None at their end."""
        while not self._arrived:
            self._wake.clear()
            await self._wake.wait()
        return self._arrived.popleft()

    def took(self, amount: int) -> None:
        """`amount` bytes have been used; as many more may come."""
        if amount:
            self._granted += amount
            self.connection.send(credit(self.number, amount))


Operation = Callable[[Machine, Stream, Object], Awaitable[None]]


class Connection:
    """One conversation with the host. It ends when the host goes or breaks the protocol."""

    def __init__(
        self, machine: Machine, channel: MemoryChannel, operations: Mapping[str, Operation], boot: str
    ) -> None:
        self._machine = machine
        self._channel = channel
        self._operations = operations
        self._boot = boot
        self._outgoing: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.streams: dict[int, Stream] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def send(self, encoded: bytes) -> None:
        self._outgoing.append(encoded)
        self._wake.set()

    async def drained(self) -> None:
        """Wait while much is queued, so that a big read is not held in memory."""
        if len(self._outgoing) > 8:
            self._room.clear()
            await self._room.wait()

    async def serve(self) -> int:
        try:
            async with children() as running:
                self.send(frame(HELLO, 0, encode(greeting(self._machine, self._boot))))
                hold = self._machine.gate.hold
                writer = running.start(hold(self._write), name="agent writer")
                try:
                    await self._read(
                        lambda *request: running.start(hold(lambda: self._answer(*request)), name="request")
                    )
                finally:
                    writer.cancel()
        except (WireError, ConnectionError):
            return 1
        finally:
            await self._channel.aclose()
        return 0

    async def _write(self) -> None:
        while True:
            while not self._outgoing:
                self._room.set()
                self._wake.clear()
                await self._wake.wait()
            batch = b"".join(self._outgoing)
            self._outgoing.clear()
            self._room.set()
            try:
                await self._channel.write(batch)
            except ConnectionError:
                return

    async def _read(self, start: Callable[[Stream, Object], asyncio.Task[None]]) -> None:
        reader = FrameReader()
        while data := await self._channel.read(1 << 16):
            for kind, number, payload in reader.feed(data):
                self._frame(kind, number, payload, start)

    def _frame(
        self, kind: int, number: int, payload: bytes, start: Callable[[Stream, Object], asyncio.Task[None]]
    ) -> None:
        if kind == OPEN:
            if number in self.streams or len(self.streams) >= MAX_STREAMS:
                raise WireError(f"stream {number} cannot be opened")
            self.streams[number] = stream = Stream(number, self)
            self._tasks[number] = start(stream, decode(payload))
            return
        known = self.streams.get(number)
        if known is None:
            return  # it crossed with our RESULT
        if kind == CANCEL:
            self._tasks[number].cancel()
        else:
            known.arrive(kind, payload)

    async def _answer(self, stream: Stream, facts: Object) -> None:
        try:
            await self._run(stream, facts)
        except Fault as fault:
            stream.error(fault)
        except WireError as error:
            stream.error(Fault("invalid", str(error)))
        finally:
            self.streams.pop(stream.number, None)
            self._tasks.pop(stream.number, None)

    async def _run(self, stream: Stream, facts: Object) -> None:
        name = facts.get("op")
        operation = self._operations.get(name) if isinstance(name, str) else None
        if operation is None:
            raise Fault("unsupported", f"there is no operation {str(name)[:40]!r}")
        await operation(self._machine, stream, facts)


def greeting(machine: Machine, boot: str) -> Object:
    return {"protocol": PROTOCOL, "boot": boot, "agent": "memory", "hostname": machine.hostname}
