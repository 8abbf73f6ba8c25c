"""A client with almost no cost: requests made beforehand, answers read as bytes, over a connection that stays open.

Twice the same: `RawConnection` blocks, for the time of one request; `RawCaller`
waits in a loop, for many at once. What an answer is, `Answer` knows for both.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from firkin.cli.bench.stage import Stage
from firkin.cli.client import ENVD_PORT
from firkin.cli.failures import CommandFailure

ECHO = ("/bin/echo", "hi")
_PATIENCE_S = 60.0
_LAST_CHUNK = b"0\r\n\r\n"
_HEAD_END = b"\r\n\r\n"
_PIECE = 1 << 20


class Answer:
    """One answer as it comes in. Chunks are not taken apart: what is looked for is in one of them."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._data = bytearray()
        self._length: int | None = None
        self.started_ms = 0.0
        self.first_ms = 0.0
        self.ended_ms = 0.0

    def feed(self, data: bytes) -> bool:
        """Whether it is complete now. Raises `CommandFailure` when nothing came."""
        if not data:
            raise CommandFailure("the server closed the connection in the middle of an answer")
        self._data += data
        if not self.started_ms and b'"start"' in self._data:
            self.started_ms = self._now()
        if not self.first_ms and b'"stdout"' in self._data:
            self.first_ms = self._now()
        complete = self._is_complete()
        if complete:
            self.ended_ms = self._now()
        return complete

    def _now(self) -> float:
        return (time.perf_counter() - self._began) * 1000

    def _is_complete(self) -> bool:
        if self._length is None:
            end = self._data.find(_HEAD_END)
            if end < 0:
                return False
            self._length = _length(bytes(self._data[: end + 2]).lower(), end + 4)
        return self._data.endswith(_LAST_CHUNK) if self._length < 0 else len(self._data) >= self._length

    @property
    def status(self) -> int:
        return int(self._data[9:12])

    @property
    def text(self) -> str:
        return self._data.decode(errors="replace")

    @property
    def refusal(self) -> str:
        """The server's own words, when it refused."""
        body = self._data.partition(_HEAD_END)[2].decode(errors="replace")
        try:
            return str(json.loads(body)["message"])
        except (ValueError, KeyError, TypeError):
            return f"it answered {self.status}: {body[:300]}"

    def json(self) -> Any:
        """The body of a call; `CommandFailure` with the server's own words when it refused."""
        body = bytes(self._data).partition(_HEAD_END)[2]
        if self.status >= 400:
            raise CommandFailure(f"the server answered {self.status}: {self.refusal}")
        return json.loads(body) if body else None


def _length(head: bytes, after: int) -> int:
    """How long the whole answer will be; -1 when it comes in chunks."""
    if b"\r\ntransfer-encoding: chunked\r\n" in head:
        return -1
    _, found, rest = head.partition(b"\r\ncontent-length:")
    return after + (int(rest.partition(b"\r\n")[0]) if found else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """A sandbox, and the token that its data plane wants."""

    sandbox_id: str
    token: str


def call_request(
    stage: Stage, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """A request of the control plane."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = {**stage.keys, "Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
    return _head(stage, method, path, lines) + content


def start_request(
    stage: Stage,
    inside: Inside,
    argv: tuple[str, ...] = ECHO,
    *,
    user: str = "",
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """Connect's ``Start`` with a plain argv."""
    message = json.dumps({"process": {"cmd": argv[0], "args": argv[1:], "envs": {}}, "stdin": False}).encode()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    asked = {"Authorization": f"Basic {base64.b64encode(f'{user}:'.encode()).decode()}"} if user else {}
    lines = {
        "Content-Type": "application/connect+json",
        "Connect-Protocol-Version": "1",
        "E2b-Sandbox-Id": inside.sandbox_id,
        "E2b-Sandbox-Port": ENVD_PORT,
        "X-Access-Token": inside.token,
        "Content-Length": str(len(body)),
        **asked,
        **(headers or {}),
    }
    return _head(stage, "POST", "/process.Process/Start", lines) + body


def _head(stage: Stage, method: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {urlsplit(stage.address.url).netloc}"]
    return ("\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items())]) + "\r\n\r\n").encode()


def made(answer: Answer) -> Inside:
    """The sandbox that a create answered with."""
    found = answer.json()
    return Inside(sandbox_id=str(found["sandboxID"]), token=str(found.get("envdAccessToken") or ""))


def with_output(answer: Answer) -> Answer:
    """The answer to a command that must have said something."""
    if not answer.first_ms:
        raise CommandFailure(f"no output came: {answer.text[:300]}")
    return answer


def _place(stage: Stage) -> tuple[str, int]:
    parts = urlsplit(stage.address.url)
    return parts.hostname or "127.0.0.1", parts.port or 80


class RawConnection:
    """One request after the other, each to the end of its answer."""

    def __init__(self, stage: Stage, *, patience_s: float = _PATIENCE_S) -> None:
        self._stage = stage
        self._socket = socket.create_connection(_place(stage), timeout=patience_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def ask(self, request: bytes) -> Answer:
        answer = Answer()
        self._socket.sendall(request)
        while not answer.feed(self._socket.recv(65536)):
            pass
        return answer

    def drain(self, request: bytes) -> int:
        """Send; the bytes of an answer in chunks, however many. They are not kept."""
        self._socket.sendall(request)
        size, tail = 0, b""
        while not tail.endswith(_LAST_CHUNK):
            data = self._socket.recv(_PIECE)
            if not data:
                raise CommandFailure("the server closed the connection in the middle of an answer")
            size += len(data)
            tail = (tail + data)[-len(_LAST_CHUNK) :]
        return size

    def create(self, headers: Mapping[str, str] | None = None) -> Inside:
        return made(self.ask(call_request(self._stage, "POST", "/sandboxes", self._stage.new_sandbox, headers)))

    def kill(self, inside: Inside) -> None:
        self.ask(call_request(self._stage, "DELETE", f"/sandboxes/{inside.sandbox_id}")).json()


class RawCaller:
    """The same, for many at once. `async with RawCaller(stage) as caller`."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def __aenter__(self) -> Self:
        host, port = _place(self._stage)
        async with asyncio.timeout(_PATIENCE_S):
            self._reader, self._writer = await asyncio.open_connection(host, port)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._writer.close()

    async def ask(self, request: bytes) -> Answer:
        answer = Answer()
        async with asyncio.timeout(_PATIENCE_S):
            self._writer.write(request)
            while not answer.feed(await self._reader.read(65536)):
                pass
        return answer

    async def create(self) -> tuple[Inside, float]:
        """The sandbox, and the milliseconds until it was answered."""
        answer = await self.ask(call_request(self._stage, "POST", "/sandboxes", self._stage.new_sandbox))
        return made(answer), answer.ended_ms

    async def call(self, method: str, path: str, body: object = None) -> float:
        answer = await self.ask(call_request(self._stage, method, path, body))
        answer.json()
        return answer.ended_ms

    async def kill(self, inside: Inside) -> float:
        return await self.call("DELETE", f"/sandboxes/{inside.sandbox_id}")

    async def echo(self, inside: Inside) -> float:
        """Milliseconds to the first byte of output."""
        return with_output(await self.ask(start_request(self._stage, inside))).first_ms
