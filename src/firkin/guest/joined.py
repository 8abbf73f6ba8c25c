"""One stream of a conversation joined to one connected socket, each direction with its own end."""

from __future__ import annotations

import _socket
import os
from contextlib import suppress

from firkin.guest.connections import Taker
from firkin.guest.faults import Refused
from firkin.guest.loop import READ
from firkin.guest.sinks import Feeder, Sink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firkin.guest.connections import Stream
    from firkin.guest.loop import Loop


class Joined(Taker, Feeder):
    """What arrives on `stream` goes into the socket that `join` is given, and back. `what` names it in refusals."""

    __slots__ = ("_connected", "_fd", "_loop", "_reading", "_sink", "_socket", "_stream", "_what")

    def __init__(self, loop: Loop, stream: Stream, what: str) -> None:
        self._loop = loop
        self._stream = stream
        self._what = what
        self._connected = False
        self._reading = False
        self._sink: Sink | None = None
        self._socket: _socket.socket | None = None
        self._fd = -1

    def join(self, connected: _socket.socket) -> None:
        """Begin with a connected, non-blocking socket, and say so with an event. Takes it over."""
        self._socket = connected
        self._fd = connected.fileno()
        self._connected = self._reading = True
        self._sink = Sink(self._loop, os.dup(self._fd), self._half_close)
        self._stream.event({})
        self._listen()

    def data(self, payload: bytes) -> None:
        if self._sink is None:
            self._fail("gone")  # before the connection stood: a host that breaks the order of things
        else:
            self._sink.push(payload, self)

    def eof(self) -> None:
        if self._sink is not None:
            self._sink.end()

    def written(self, amount: int) -> None:
        self._stream.grant(amount)

    def broken(self) -> None:
        self._fail("gone")

    def resume(self) -> None:
        self._listen()

    def cancelled(self) -> None:
        self._close()

    def _listen(self) -> None:
        if self._reading:
            self._loop.watch(self._fd, READ if self._stream.room() else 0, self._ready)

    def _ready(self, _events: int) -> None:
        assert self._socket is not None
        room = self._stream.room()
        if not room:
            self._listen()
            return
        try:
            data = self._socket.recv(room)
        except BlockingIOError:
            return
        except OSError:
            self._fail("gone")
            return
        if data:
            self._stream.data(data)
            self._listen()
            return
        self._reading = False
        self._loop.forget(self._fd)
        self._stream.eof()
        self._settle()

    def _half_close(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # the other side has hung up already
                self._socket.shutdown(_socket.SHUT_WR)
        self._loop.after(0, self._settle)  # once the sink has closed

    def _settle(self) -> None:
        if self._connected and not self._reading and self._sink is not None and not self._sink.open:
            self._stream.result({})
            self._close()

    def _fail(self, code: str) -> None:
        self._stream.error(Refused(code, f"{self._what}: the connection was lost"))
        self._close()

    def _close(self) -> None:
        self._connected = self._reading = False
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()
        self._forget_socket()

    def _forget_socket(self) -> None:
        connected, self._socket = self._socket, None
        if connected is not None:
            self._loop.forget(self._fd)
            connected.close()
