"""A helper process of ours: lean Python, empty environment, one SEQPACKET socket, ends with the server."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import subprocess
import sys
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path

from firkin.law.errors import BackendFailure

_SOURCES = str(Path(__file__).parents[3])
_MESSAGE = 1 << 20
_START = "import sys; sys.path.insert(0, {sources!r}); from {module} import main; main({fd}, {parent})"


class HelperDied(Exception):
    """The helper ended while somebody waited for its answer."""


class HelperProcess:
    """Starts `module`.main(fd, parent pid) and carries messages with descriptors to and fro.

    Messages are answered in any order; the caller matches them.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._sending = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def begin(self) -> None:
        """Have it load its code while the caller does something else; `start` waits for that. Idempotent."""
        if self._process is None:
            ahead = _AHEAD.get() or {}
            spawned = ahead.pop(self._module) if self._module in ahead else _spawn(self._module)
            self._process, self._socket = spawned

    async def start(self, *, first: bytes = b"", within_s: float = 15.0) -> None:
        """Wait until it says that it is ready. `first` is sent before."""
        self.begin()
        process = self._process
        assert process is not None
        try:
            if first:
                await self.send(first, [])
            async with asyncio.timeout(within_s):
                await self.receive()
        except (TimeoutError, HelperDied):
            complaint = await self._complaint()
            await self.aclose()
            raise BackendFailure("start a helper", self._module, complaint) from None
        if process.stderr is not None:
            process.stderr.close()

    async def _complaint(self) -> str:
        process = self._process
        if process is None or process.stderr is None:
            return "it was closed"
        try:
            await asyncio.to_thread(process.wait, 0.5)
        except subprocess.TimeoutExpired:
            return "it did not become ready in time"
        text = await asyncio.to_thread(process.stderr.read)
        return text.decode(errors="replace").strip().rpartition("\n")[2] or f"it ended with {process.returncode}"

    async def send(self, message: bytes, fds: list[int]) -> None:
        """Raises `HelperDied`."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        async with self._sending:  # a loop knows one writer for each descriptor
            while not self._sent(message, rights):
                await _until_writable(self._connection())

    def _sent(self, message: bytes, rights: list[tuple[int, int, array.array[int]]]) -> bool:
        try:
            self._connection().sendmsg([message], rights)
        except BlockingIOError:
            return False
        except OSError as error:
            raise HelperDied(self._module) from error
        return True

    def _connection(self) -> socket.socket:
        if self._socket is None:
            raise HelperDied(self._module)
        return self._socket

    async def receive(self) -> tuple[bytes, list[int]]:
        """The next message and its descriptors: all that it came with, or none when this process had no room for them.

        Raises `HelperDied`.
        """
        while True:
            try:
                message, ancillary, flags, _ = self._connection().recvmsg(_MESSAGE, 1024, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                await _until_readable(self._connection())
                continue
            except OSError as error:
                raise HelperDied(self._module) from error
            if not message:
                raise HelperDied(self._module)
            fds = array.array("i")
            for _, _, data in ancillary:
                fds.frombytes(data)
            if flags & socket.MSG_CTRUNC:  # the kernel gave those that it had numbers for
                while fds:
                    os.close(fds.pop())
            return message, list(fds)

    async def aclose(self) -> None:
        """End it and reap it."""
        connection, self._socket = self._socket, None
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await asyncio.to_thread(process.wait)
            if process.stderr is not None:
                process.stderr.close()


_Spawned = tuple["subprocess.Popen[bytes]", socket.socket]
_AHEAD: ContextVar[dict[str, _Spawned] | None] = ContextVar("firkin_helpers_ahead", default=None)


def spawn_ahead(*modules: str) -> None:
    """Let helpers load their code on another processor while the caller, who becomes a server, loads its own.

    The first `HelperProcess` of each module in this context takes it. One that nobody takes ends with the caller.
    """
    _AHEAD.set({module: _spawn(module) for module in modules})


def _spawn(module: str) -> _Spawned:
    """A vfork: a millisecond, and no child watcher to depend on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    code = _START.format(sources=_SOURCES, module=module, fd=theirs.fileno(), parent=os.getpid())
    with theirs:
        try:
            process = subprocess.Popen(
                [_interpreter(), "-I", "-S", "-B", "-c", code],
                env={}, cwd="/", pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
    return process, ours


def _interpreter() -> str:
    """The real interpreter: a virtual environment's link would do, a shim on PATH would not."""
    return os.path.realpath(sys.executable)


async def _until_readable(connection: socket.socket) -> None:
    await _until(connection, reading=True)


async def _until_writable(connection: socket.socket) -> None:
    await _until(connection, reading=False)


async def _until(connection: socket.socket, *, reading: bool) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    add, remove = (loop.add_reader, loop.remove_reader) if reading else (loop.add_writer, loop.remove_writer)

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    add(connection.fileno(), wake)
    try:
        await ready
    finally:
        remove(connection.fileno())
