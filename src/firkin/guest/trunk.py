"""One pipe to the host that carries many conversations: for machines whose only way out is a serial port.

The pipe itself speaks the wire protocol (`wire.frames`). Each ``dial`` on it is a
stream, and what goes through that stream is a whole conversation with the agent,
so the host deals with it as with any connection of its own.

A pipe has no beginning and no end: the host may go in the middle of a frame,
and a machine may be woken up with a host of another time. So there is a second
pipe, on which a host says ``reset`` and a number that nobody could know before.
When that is acknowledged, whatever comes through the first one is dropped until
that number comes; it is sent back, and what follows is new, in both directions.
"""

from __future__ import annotations

import _socket
import os
from contextlib import suppress

from firkin.guest.connections import Connection
from firkin.guest.faults import Refused
from firkin.guest.joined import Joined
from firkin.guest.loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from firkin.guest.connections import Stream
    from firkin.guest.loop import Loop
    from firkin.wire.codec import Object

    Operations = Mapping[str, Callable[[Stream, Object], None]]

NONCE = 16
_LINE = len(b"reset \n") + 2 * NONCE
# EPOLLET: a pipe without a host hangs up all the time. WRITE: that there is a host again is told by that alone, where
# what it said was read before.
_EDGES = READ | WRITE | 1 << 31
_MOST_A_WRITE = 32 * 1024  # the kernel's own limit for such ports


class _Port:
    """The file of a serial port with as much of a socket as a `Connection` needs."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def setblocking(self, flag: bool, /) -> None:
        os.set_blocking(self._fd, flag)

    def recv(self, size: int, /) -> bytes:
        return os.read(self._fd, size)

    def sendmsg(self, pieces: Iterable[bytes | memoryview], /) -> int:
        return os.write(self._fd, b"".join(pieces)[:_MOST_A_WRITE])

    def close(self) -> None:
        """The port stays: a next conversation goes through it."""


class Trunk:
    """Serves hosts on `port`, one at a time. `take` is given a socket for each conversation with the agent."""

    __slots__ = (
        *("_answer", "_connection", "_found", "_loop", "_nonce", "_operations", "_port", "_reset"),
        *("_said", "_seen", "_take"),
    )

    def __init__(self, loop: Loop, port: int, reset: int, take: Callable[[_socket.socket], None]) -> None:
        self._loop = loop
        self._port = _Port(port)
        self._reset = reset
        self._take = take
        self._operations: dict[str, Callable[[Stream, Object], None]] = {"dial": self._dial}
        self._connection: Connection | None = None
        self._answer = b""
        self._found = False
        self._nonce = b""
        self._said = b""
        self._seen = b""

    def begin(self, more: Operations) -> None:
        """From now on hosts are served; `more` operations are for them alone, not for conversations."""
        self._operations.update(more)
        os.set_blocking(self._reset, False)
        self._port.setblocking(False)
        self._loop.watch(self._reset, _EDGES, self._called)
        self._called(0)

    def _called(self, _events: int) -> None:
        with suppress(OSError):  # BlockingIOError: that was all
            while data := os.read(self._reset, 4096):
                self._said = (self._said + data)[-2 * _LINE :]
        line, end, rest = self._said.rpartition(b"\n")
        if end:
            self._said = rest
            word, _, number = line.rpartition(b"\n")[2].partition(b" ")
            if word == b"reset" and len(number) == 2 * NONCE:
                with suppress(ValueError):
                    self._begin_again(bytes.fromhex(number.decode("ascii", "replace")))
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Nothing can be written until the driver has heard that there is a host, though what it said may be here."""
        if self._answer:
            with suppress(OSError):
                os.write(self._reset, self._answer)
                self._answer = b""

    def _begin_again(self, nonce: bytes) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._nonce, self._seen, self._found = nonce, b"", False
        self._loop.watch(self._port.fileno(), _EDGES, self._seek)
        self._answer = b"ready " + nonce.hex().encode() + b"\n"

    def _seek(self, _events: int) -> None:
        """Drop everything up to the number. A port reads as ended until its driver has heard that there is a host."""
        while True:
            try:
                data = self._port.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                return
            if not data:
                return
            seen = self._seen + data
            self._found = self._found or self._nonce in seen
            self._seen = seen[-NONCE:]
        if self._found:
            self._loop.forget(self._port.fileno())
            self._connection = Connection(self._loop, self._port, self._open)
            self._connection.send_raw(self._nonce)

    def _open(self, stream: Stream, operation: str, args: Object) -> None:
        try:
            handler = self._operations.get(operation)
            if handler is None:
                raise Refused("unsupported", f"operation {operation!r} is not known here")
            handler(stream, args)
        except Exception as error:  # noqa: BLE001 — told to the host
            stream.error(error)

    def _dial(self, stream: Stream, _args: Object) -> None:
        ours, theirs = _socket.socketpair()
        ours.setblocking(False)
        joined = Joined(self._loop, stream, "the agent")
        stream.taker = joined
        joined.join(ours)
        self._take(theirs)
