"""QEMU's machine protocol (QMP): one JSON object a line, spoken over the machine's control socket.

Who has broken out of a machine sits in QEMU, so its answers are as hostile as a
guest's: they are bounded, checked for shape, and each has a deadline.
"""

from __future__ import annotations

import array
import asyncio
import json
import socket
from contextlib import suppress
from typing import Any

from firkin.law.errors import BackendFailure

_MOST_LINE = 1 << 20
_ANSWER_S = 20.0
_NAME = "qemu"


class Monitor:
    """A connection to one QEMU. Commands go one after the other; any failure ends the connection."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._buffer = bytearray()
        self._turn = asyncio.Lock()
        self._closed = False

    @classmethod
    async def connect(cls, path: str, *, within_s: float) -> Monitor:
        """Raises `OSError` or `TimeoutError` when nobody answers, `BackendFailure` for what is not QMP."""
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        monitor = cls(connected)
        try:
            async with asyncio.timeout(within_s):
                await asyncio.get_running_loop().sock_connect(connected, path)
                greeting = await monitor._line()
            if "QMP" not in greeting:
                raise BackendFailure("reach the machine", _NAME, "its greeting is none")
            await monitor.ask("qmp_capabilities")
        except BaseException:
            monitor.close()
            raise
        return monitor

    @property
    def is_open(self) -> bool:
        return not self._closed

    async def ask(self, command: str, *, within_s: float = _ANSWER_S, fd: int = -1, **arguments: Any) -> Any:
        """The answer to a command, `fd` handed over with it. `BackendFailure` for a refusal, or none in time."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        async with self._turn:
            try:
                async with asyncio.timeout(within_s):
                    await self._send(json.dumps(request).encode() + b"\n", fd)
                    while True:
                        answer = await self._line()
                        if "return" in answer:
                            return answer["return"]
                        if "error" in answer:
                            break
            except (OSError, TimeoutError) as error:
                self.close()
                raise BackendFailure(command, _NAME, str(error) or "it does not answer") from error
            except BaseException:
                self.close()  # its answer would be taken for that of the next command
                raise
        described = answer["error"].get("desc", "") if isinstance(answer["error"], dict) else ""
        raise BackendFailure(command, _NAME, str(described)[:300] or "it refused")

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._socket.close()

    async def _send(self, message: bytes, fd: int) -> None:
        if self._closed:
            raise ConnectionResetError("the connection is closed")
        if fd < 0:
            await asyncio.get_running_loop().sock_sendall(self._socket, message)
            return
        # Short enough to go at once: commands with a descriptor are a hundred bytes.
        sent = self._socket.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
        await asyncio.get_running_loop().sock_sendall(self._socket, message[sent:])

    async def _line(self) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _MOST_LINE:
                raise ConnectionResetError("it says too much at once")
            data = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
            if not data:
                raise ConnectionResetError("it has gone")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        with suppress(ValueError, RecursionError):
            answer = json.loads(line)
            if isinstance(answer, dict):
                return answer
        raise ConnectionResetError("what it says is no JSON object")
