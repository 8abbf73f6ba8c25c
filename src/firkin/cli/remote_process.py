"""A process of a served sandbox, attached over the server's data plane."""

from __future__ import annotations

import base64
import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

from firkin.cli.attachment import ExitCode, Output
from firkin.cli.client import ServerClient
from firkin.cli.failures import BAD_INPUT, CommandFailure, start_exit_code
from firkin.law.processes import PtySize

_START = "process.Process/Start"
# How the wire names signals in an end event's status; the rest are "signal N".
_SIGNAL_WORDS: Mapping[str, int] = MappingProxyType(
    {
        "hangup": signal.SIGHUP,
        "interrupt": signal.SIGINT,
        "quit": signal.SIGQUIT,
        "illegal instruction": signal.SIGILL,
        "aborted": signal.SIGABRT,
        "bus error": signal.SIGBUS,
        "floating point exception": signal.SIGFPE,
        "killed": signal.SIGKILL,
        "segmentation fault": signal.SIGSEGV,
        "broken pipe": signal.SIGPIPE,
        "alarm clock": signal.SIGALRM,
        "terminated": signal.SIGTERM,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCommand:
    """What to start, and with which terminal (None: pipes)."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None = None
    user: str | None = None
    pty: PtySize | None = None

    def body(self) -> dict[str, Any]:
        process: dict[str, Any] = {"cmd": self.argv[0], "args": list(self.argv[1:]), "envs": dict(self.env)}
        if self.cwd is not None:
            process["cwd"] = self.cwd
        if self.pty is None:
            return {"process": process, "stdin": True}
        return {"process": process, "pty": {"size": _size(self.pty)}}


class RemoteProcess:
    """Starts with the first event that is read; input before that has nowhere to go and waits."""

    def __init__(self, server: ServerClient, sandbox_id: str, command: RemoteCommand, pid: int, events: Any) -> None:
        self._server = server
        self._sandbox_id = sandbox_id
        self._command = command
        self._selector = {"process": {"pid": pid}}
        self._events = events

    @classmethod
    async def start(cls, server: ServerClient, sandbox_id: str, command: RemoteCommand) -> RemoteProcess:
        events = server.stream(sandbox_id, _START, command.body(), user=command.user)
        try:
            async for message in events:
                pid = message.get("event", {}).get("start", {}).get("pid")
                if isinstance(pid, int):
                    return cls(server, sandbox_id, command, pid, events)
        except CommandFailure as error:
            if error.status == HTTPStatus.BAD_GATEWAY:
                await _refuse_paused(server, sandbox_id)
            raise CommandFailure(str(error), exit_code=start_exit_code(str(error)) or error.exit_code) from error
        raise CommandFailure(f"sandbox {sandbox_id} ended before the command started")

    async def events(self) -> AsyncIterator[Output | ExitCode]:
        async for message in self._events:
            event = message.get("event", {})
            for name, descriptor in (("stdout", 1), ("pty", 1), ("stderr", 2)):
                if data := event.get("data", {}).get(name):
                    yield Output(descriptor, base64.b64decode(data))
            if "end" in event:
                yield ExitCode(exit_code(event["end"]))
                return

    async def send_input(self, data: bytes) -> None:
        kind = "stdin" if self._command.pty is None else "pty"
        await self._call("SendInput", {"input": {kind: base64.b64encode(data).decode()}})

    async def close_stdin(self) -> None:
        if self._command.pty is None:
            await self._call("CloseStdin", {})

    async def signal(self, number: int) -> None:
        if number == signal.SIGINT and self._command.pty is not None:
            await self.send_input(b"\x03")
            return
        try:
            await self._call("SendSignal", {"signal": number})
        except CommandFailure as error:
            if error.status != HTTPStatus.NOT_FOUND:  # else it has ended
                raise

    async def resize(self, size: PtySize) -> None:
        await self._call("Update", {"pty": {"size": _size(size)}})

    async def _call(self, method: str, body: dict[str, Any]) -> None:
        await self._server.unary(self._sandbox_id, f"process.Process/{method}", {**self._selector, **body})


async def _refuse_paused(server: ServerClient, sandbox_id: str) -> None:
    """The data plane has one answer for whatever does not run; the record knows what can be done about it."""
    record, _ = await server.call("GET", f"/sandboxes/{sandbox_id}")
    if record.get("state") == "paused":
        text = f"sandbox {sandbox_id} is paused; resume it with: firkin sandbox resume {sandbox_id}"
        raise CommandFailure(text, exit_code=BAD_INPUT)


def exit_code(end: Mapping[str, Any]) -> int:
    """A shell's number for an end event: the exit code, or 128+n for signal n."""
    status = str(end.get("status", ""))
    if status.startswith("signal"):
        word = status.removeprefix("signal").lstrip(": ").removesuffix(" (core dumped)").strip()
        number = int(word) if word.isdecimal() else _SIGNAL_WORDS.get(word, signal.SIGKILL)
        return 128 + number
    return int(end.get("exitCode") or 0) & 0xFF


def _size(size: PtySize) -> dict[str, int]:
    return {"rows": size.rows, "cols": size.cols}
