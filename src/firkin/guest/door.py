"""What programs inside may ask of their own sandbox, over HTTP on the loopback: is it there, what was it given.

The port and all that is answered come from the host, with ``introduce``: before that
nothing listens. Who asks is hostile. There are few callers at a time, each with a
short head, one answer and a deadline; the others wait in the kernel's queue. Of the word that opens
what was given only a digest is here, so a copy of this memory opens nothing.
"""

from __future__ import annotations

import _socket
import os
from _blake2 import blake2s  # hashlib would bring OpenSSL

from firkin.guest.loop import READ, WRITE
from firkin.wire import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firkin.guest.connections import Stream
    from firkin.guest.entries import Entries
    from firkin.guest.loop import Loop
    from firkin.wire.codec import Object

MOST_CALLERS = 16
MOST_HEAD = 8192
CALL_S = 5.0
_QUEUE = 64
_AGAIN_S = 1.0
_LOOPBACK = "127.0.0.1"
_WORD_HEADER = b"x-access-token"
_END = b"\r\n\r\n"
_REASONS = {200: "OK", 204: "No Content", 401: "Unauthorized", 404: "Not Found"}
_NOT_YOURS = "unauthorized access, please provide a valid access token"
_NEW_FILE = 0o444


class Door:
    """Listens once it was introduced. `port` is 0 until then, and where another program has it."""

    __slots__ = ("_callers", "_digest", "_entries", "_files", "_given", "_listener", "_loop", "_sweeping", "port")

    def __init__(self, loop: Loop, entries: Entries) -> None:
        self._loop = loop
        self._entries = entries
        self._listener: _socket.socket | None = None
        self._callers: dict[_Caller, None] = {}
        self._sweeping = False
        self._given = b""
        self._digest = ""
        self._files: dict[str, str] = {}
        self.port = 0

    def operations(self) -> dict[str, Callable[[Stream, Object], None]]:
        return {"introduce": self.introduce}

    def introduce(self, stream: Stream, args: Object) -> None:
        """From now on this is answered. Files are left once; what cannot be left or heard harms nobody."""
        files = codec.mapping(args, "files")
        if files != self._files:
            self._files = files
            for path, text in files.items():
                self._leave(path, text.encode())
        port = codec.integer(args, "port", 0)
        if port:
            self._digest = codec.text(args, "digest", "")
            self._given = response(200, codec.encode(codec.mapping(args, "env")))
            self._open(port)
        stream.result({"port": self.port})

    def forget(self) -> None:
        """It is another sandbox from now on, and nobody has said which."""
        self._given, self._digest, self._files = b"", "", {}

    def _leave(self, path: str, content: bytes) -> None:
        try:
            fd = self._file(path)
        except Exception:  # noqa: BLE001 — OSError or Refused: something else is there, or the place is read-only
            return
        try:
            if os.fstat(fd).st_size != len(content):
                os.ftruncate(fd, 0)  # else in place: giving blocks back takes an emulated machine long
            os.write(fd, content)
        except OSError:
            pass
        finally:
            os.close(fd)

    def _file(self, path: str) -> int:
        flags = os.O_WRONLY | os.O_NOFOLLOW
        try:
            return self._entries.open_regular(path, flags | os.O_CREAT, _NEW_FILE)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            return self._entries.open_regular(path, flags | os.O_CREAT, _NEW_FILE)

    def _open(self, port: int) -> None:
        if self._listener is not None:
            return
        listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK, 0)
        try:
            listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
            listener.bind((_LOOPBACK, port))
            listener.listen(_QUEUE)
        except (OSError, OverflowError):  # a program has it, or there is no loopback: tried again when next introduced
            listener.close()
            return
        self._listener, self.port = listener, port
        self._attend()

    def _attend(self) -> None:
        if self._listener is not None:
            self._loop.watch(self._listener.fileno(), READ if len(self._callers) < MOST_CALLERS else 0, self._accept)

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # what socket.accept() is made of
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no descriptor or no memory is left: not at every turn
            self._loop.watch(self._listener.fileno(), 0, self._accept)
            self._loop.after(_AGAIN_S, self._attend)
            return
        self._callers[_Caller(self._loop, self, _socket.socket(fileno=fd))] = None
        self._attend()
        if not self._sweeping:
            self._sweep()

    def _sweep(self) -> None:
        """One timer for all callers: one for each would stay behind it."""
        late = self._loop.now() - CALL_S
        for caller in [caller for caller in self._callers if caller.since <= late]:
            caller.close()
        self._sweeping = bool(self._callers)
        if self._sweeping:
            self._loop.after(_AGAIN_S, self._sweep)

    def left(self, caller: _Caller) -> None:
        """It has hung up, or was hung up on."""
        self._callers.pop(caller, None)
        self._attend()

    def answer(self, head: bytes) -> bytes:
        """The whole answer to a request with that head."""
        line, _, fields = head.partition(b"\r\n")
        method, _, target = line.partition(b" ")
        asked = method, target.partition(b" ")[0].partition(b"?")[0]
        if asked in ((b"GET", b"/health"), (b"HEAD", b"/health")):
            return response(204, b"")
        if not self._given or (self._digest and blake2s(_word(fields)).hexdigest() != self._digest):
            return response(401, _told(401, _NOT_YOURS))
        if asked == (b"GET", b"/envs"):
            return self._given
        return response(404, _told(404, "there is nothing here but GET /health and GET /envs"))


def _word(fields: bytes) -> bytes:
    for field in fields.split(b"\r\n"):
        name, _, value = field.partition(b":")
        if name.lower() == _WORD_HEADER:
            return value.strip()
    return b""


def _told(status: int, message: str) -> bytes:
    return codec.encode({"code": status, "message": message})


def response(status: int, body: bytes) -> bytes:
    about = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\n{about}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    return head.encode() + body


class _Caller:
    """One connection: a head in, an answer out, and gone."""

    __slots__ = ("_door", "_head", "_left", "_loop", "_socket", "since")

    def __init__(self, loop: Loop, door: Door, connected: _socket.socket) -> None:
        self._loop = loop
        self._door = door
        self._socket = connected
        self._head = b""
        self._left = memoryview(b"")
        self.since = loop.now()
        connected.setblocking(False)
        loop.watch(connected.fileno(), READ, self._ready)

    def _ready(self, _events: int) -> None:
        try:
            if self._left:
                self._send()
            else:
                self._receive()
        except BlockingIOError:
            return
        except Exception:  # noqa: BLE001 — it has hung up, or there is no memory for it
            self.close()

    def _receive(self) -> None:
        data = self._socket.recv(MOST_HEAD)
        if not data:
            self.close()
            return
        self._head += data
        head, ends, _ = self._head.partition(_END)
        if not ends:
            if len(self._head) >= MOST_HEAD:
                self.close()
            return
        self._head = b""
        self._left = memoryview(self._door.answer(head))
        self._loop.watch(self._socket.fileno(), WRITE, self._ready)
        self._send()

    def _send(self) -> None:
        self._left = self._left[self._socket.send(self._left) :]
        if not self._left:
            self.close()

    def close(self) -> None:
        """Hang up."""
        if self._socket.fileno() < 0:
            return
        self._loop.forget(self._socket.fileno())
        self._socket.close()
        self._left = memoryview(b"")
        self._door.left(self)
