"""Conversations with the host: frames in, frames out, credit both ways.

A host that breaks the protocol loses that connection and nothing else. What is
written is collected and sent once a turn.
"""

from __future__ import annotations

from collections import deque

from firkin.guest.faults import Refused, refusal
from firkin.guest.loop import READ, WRITE
from firkin.wire import codec
from firkin.wire.frames import (
    CANCEL,
    CHUNK,
    CREDIT,
    DATA,
    EOF,
    ERROR,
    EVENT,
    HEADER,
    HEADER_SIZE,
    MAX_PAYLOAD,
    OPEN,
    RESULT,
    WINDOW,
    FrameReader,
    WireError,
    credit,
    credit_amount,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from firkin.guest.loop import Loop

    Open = Callable[["Stream", str, codec.Object], None]

    class Pipe(Protocol):
        """What a conversation needs of its socket."""

        def fileno(self) -> int: ...
        def setblocking(self, flag: bool, /) -> None: ...
        def recv(self, size: int, /) -> bytes: ...
        def sendmsg(self, pieces: Sequence[bytes | memoryview], /) -> int: ...
        def close(self) -> None: ...


_RECEIVE = 256 * 1024
_HIGH_WATER = 512 * 1024
_MOST_BACKLOG = 16 * 1024 * 1024
_MOST_STREAMS = 4096
_PIECES_A_SEND = 64
_TOO_LONG = f"the answer is too long; it may have {MAX_PAYLOAD} bytes"


class Taker:
    """What a stream is for: told what the host sends on it. Ignores what it has no use for."""

    __slots__ = ()

    def data(self, payload: bytes) -> None: ...

    def eof(self) -> None: ...

    def resume(self) -> None:
        """There is credit, and room on the connection, again."""

    def cancelled(self) -> None:
        """Nobody listens any more. Called once, unless the stream had ended before."""


_IDLE = Taker()


class Stream:
    """One request. `credit` bytes may still be sent, `allowance` bytes may still arrive."""

    __slots__ = ("allowance", "closed", "connection", "credit", "id", "taker")

    def __init__(self, connection: Connection, id: int) -> None:
        self.connection = connection
        self.id = id
        self.credit = WINDOW
        self.allowance = WINDOW
        self.taker: Taker = _IDLE
        self.closed = False

    def room(self) -> int:
        """How many bytes of DATA may be sent now."""
        return min(self.credit, CHUNK) if self.connection.roomy else 0

    def data(self, payload: bytes, kind: int = DATA) -> None:
        self.credit -= len(payload)
        self.connection.send(kind, self.id, payload)

    def eof(self) -> None:
        self.connection.send(EOF, self.id, b"")

    def grant(self, amount: int) -> None:
        if not self.closed:
            self.allowance += amount
            self.connection.send_raw(credit(self.id, amount))

    def event(self, value: codec.Object) -> None:
        """Raises `Refused` for what no frame can hold: the host would hang up on all who talk to it."""
        payload = codec.encode(value)
        if len(payload) > MAX_PAYLOAD:
            raise Refused("limit", _TOO_LONG)
        self.connection.send(EVENT, self.id, payload)

    def result(self, value: codec.Object) -> None:
        self._finish(RESULT, value)

    def error(self, error: BaseException, path: str | None = None) -> None:
        refused = refusal(error, path)
        answer: codec.Object = {"code": refused.code, "message": refused.message}
        if refused.path is not None:
            answer["path"] = refused.path
        self._finish(ERROR, answer)

    def _finish(self, kind: int, value: codec.Object) -> None:
        if self.closed:
            return
        payload = codec.encode(value)
        if len(payload) > MAX_PAYLOAD:
            kind, payload = ERROR, codec.encode({"code": "limit", "message": _TOO_LONG})
        self.closed = True
        self.taker = _IDLE
        self.connection.streams.pop(self.id, None)
        self.connection.send(kind, self.id, payload)


class Connection:
    """One connected host."""

    __slots__ = ("_backlog", "_dirty", "_fd", "_frames", "_loop", "_on_open", "_out", "_socket", "closed", "streams")

    def __init__(self, loop: Loop, connected: Pipe, on_open: Open) -> None:
        self._loop = loop
        self._socket = connected
        self._fd = connected.fileno()
        self._on_open = on_open
        self._frames = FrameReader()
        self._out: deque[bytes | memoryview] = deque()
        self._backlog = 0
        self._dirty = False
        self.closed = False
        self.streams: dict[int, Stream] = {}
        connected.setblocking(False)
        loop.watch(self._fd, READ, self._ready)

    @property
    def roomy(self) -> bool:
        return self._backlog < _HIGH_WATER

    def send(self, kind: int, stream: int, payload: bytes) -> None:
        if self.closed:
            return
        self._out.append(HEADER.pack(len(payload), kind, stream))
        if payload:
            self._out.append(payload)
        self._queued(HEADER_SIZE + len(payload))

    def send_raw(self, frame: bytes) -> None:
        if not self.closed:
            self._out.append(frame)
            self._queued(len(frame))

    def _queued(self, size: int) -> None:
        self._backlog += size
        if not self._dirty:
            self._dirty = True
            self._loop.at_end_of_turn(self._flush)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._loop.forget(self._fd)
        self._socket.close()
        self._out.clear()
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            _cancel(stream)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & ~WRITE and not self.closed:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(_RECEIVE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            for kind, id, payload in self._frames.feed(data):
                self._route(kind, id, payload)
                if self.closed:
                    return
        except Exception:  # noqa: BLE001 — WireError or not: this conversation is over, the agent lives
            self.close()

    def _route(self, kind: int, id: int, payload: bytes) -> None:
        if kind == OPEN:
            self._open(id, payload)
            return
        stream = self.streams.get(id)
        if stream is None:  # it ended while this was under way
            return
        if kind == DATA:
            stream.allowance -= len(payload)
            if stream.allowance < 0:
                raise WireError("more data than was granted")
            stream.taker.data(payload)
        elif kind == CREDIT:
            stream.credit += credit_amount(payload)
            stream.taker.resume()
        elif kind == EOF:
            stream.taker.eof()
        elif kind == CANCEL:
            del self.streams[id]
            _cancel(stream)
        else:
            raise WireError(f"frame kind {kind} does not come from a host")

    def _open(self, id: int, payload: bytes) -> None:
        if id in self.streams or len(self.streams) >= _MOST_STREAMS:
            raise WireError("the stream is in use, or too many are")
        request = codec.decode(payload)
        operation = codec.text(request, "op")
        stream = self.streams[id] = Stream(self, id)
        self._on_open(stream, operation, request)

    def _flush(self) -> None:
        self._dirty = False
        if self.closed:
            return
        out = self._out
        was_full = not self.roomy
        try:
            while out:
                self._sent(self._socket.sendmsg([out[i] for i in range(min(len(out), _PIECES_A_SEND))]))
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if self._backlog > _MOST_BACKLOG:
            self.close()
            return
        self._loop.watch(self._fd, READ | WRITE if out else READ, self._ready)
        if was_full and self.roomy:
            for stream in list(self.streams.values()):
                stream.taker.resume()

    def _sent(self, size: int) -> None:
        out = self._out
        self._backlog -= size
        while size:
            piece = out[0]
            if size < len(piece):
                out[0] = memoryview(piece)[size:]
                return
            size -= len(piece)
            out.popleft()


def _cancel(stream: Stream) -> None:
    if not stream.closed:
        stream.closed = True
        taker, stream.taker = stream.taker, _IDLE
        taker.cancelled()
