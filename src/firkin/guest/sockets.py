"""Connections to services inside, and which ports have one."""

from __future__ import annotations

import _socket
import errno
import os
from contextlib import suppress

from firkin.guest.connections import Taker
from firkin.guest.faults import Refused
from firkin.guest.loop import READ, WRITE
from firkin.guest.sinks import Feeder, Sink
from firkin.wire import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firkin.guest.connections import Stream
    from firkin.guest.loop import Loop, Timer
    from firkin.wire.codec import Object

_CONNECT_S = 10.0
_TABLE_BYTES = 1 << 20
_LISTEN = "0A"
_PLACES = ((_socket.AF_INET, "127.0.0.1"), (_socket.AF_INET6, "::1"))
_REACHABLE = frozenset(
    (
        "00000000",
        "0100007F",
        "00000000000000000000000000000000",
        "00000000000000000000000001000000",
        "0000000000000000FFFF00000100007F",
    )
)


class _Tunnel(Taker, Feeder):
    """One stream joined to one TCP connection, each direction with its own end."""

    __slots__ = ("_connected", "_fd", "_loop", "_places", "_port", "_reading", "_sink", "_socket", "_stream", "_timer")

    def __init__(self, loop: Loop, stream: Stream, port: int) -> None:
        self._loop = loop
        self._stream = stream
        self._port = port
        self._places = list(_PLACES)
        self._connected = False
        self._reading = False
        self._sink: Sink | None = None
        self._socket: _socket.socket | None = None
        self._fd = -1
        self._timer: Timer = loop.after(_CONNECT_S, self._too_late)
        self._next_place(errno.ECONNREFUSED)

    def _next_place(self, reason: int) -> None:
        self._forget_socket()
        while self._places:
            family, address = self._places.pop(0)
            try:
                self._socket = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK, 0)
                self._socket.setblocking(False)
                number = self._socket.connect_ex((address, self._port))
            except OSError as error:  # no IPv6 here, or no descriptor left
                number = error.errno or errno.ECONNREFUSED
            if number == errno.EINPROGRESS and self._socket is not None:
                self._fd = self._socket.fileno()
                self._loop.watch(self._fd, WRITE, self._decided)
                return
            if number == 0:
                self._begin()
                return
            self._forget_socket()
            reason = reason if number in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL) else number
        self._timer.cancel()
        code = "limit" if reason in (errno.EMFILE, errno.ENFILE, errno.ENOMEM) else "refused"
        self._stream.error(Refused(code, f"port {self._port}: {os.strerror(reason)}"))

    def _decided(self, _events: int) -> None:
        assert self._socket is not None
        reason = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if reason:
            self._next_place(reason)
        else:
            self._begin()

    def _begin(self) -> None:
        assert self._socket is not None
        self._timer.cancel()
        self._fd = self._socket.fileno()
        self._loop.forget(self._fd)
        self._connected = self._reading = True
        self._socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self._sink = Sink(self._loop, os.dup(self._fd), self._half_close)
        self._stream.event({})
        self._listen()

    def _too_late(self) -> None:
        self._forget_socket()
        self._stream.error(Refused("refused", f"port {self._port}: nothing answered within {_CONNECT_S:g} s"))

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
        self._timer.cancel()
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
        self._stream.error(Refused(code, f"port {self._port}: the connection was lost"))
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


class SocketOperations:
    __slots__ = ("_loop",)

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def operations(self) -> dict[str, Callable[[Stream, Object], None]]:
        return {"connect": self.connect, "listening": self.listening}

    def connect(self, stream: Stream, args: Object) -> None:
        port = codec.integer(args, "port")
        if not 0 < port < 65536:
            raise Refused("invalid", f"{port} is not a port")
        stream.taker = _Tunnel(self._loop, stream, port)

    def listening(self, stream: Stream, _args: Object) -> None:
        ports: set[int] = set()
        for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
            ports.update(_listeners(table))
        stream.result({"ports": sorted(ports)})


def _listeners(table: str) -> list[int]:
    """Ports in a /proc/net table that listen where `connect` can reach them."""
    try:
        with open(table, "rb", buffering=0) as file:
            lines = file.read(_TABLE_BYTES).decode("ascii", "replace").split("\n")[1:-1]  # listeners come first
    except OSError:
        return []
    rows = [line.split() for line in lines if line]
    places = [row[1].split(":") for row in rows if len(row) > 3 and row[3] == _LISTEN]
    return [int(port, 16) for address, port in places if address in _REACHABLE]
