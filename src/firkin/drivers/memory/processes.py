"""A process in memory: one coroutine, its standard streams, who reads its output, and how it ended."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from firkin.drivers.memory.accounts import Account
from firkin.drivers.memory.pipes import Nothing, Pipe, Source
from firkin.wire.codec import Object
from firkin.wire.frames import CHUNK
from firkin.wire.operations import RETAINED_OUTPUT

TERMINAL, STDOUT, STDERR = "terminal", "stdout", "stderr"

KILL, CONTINUE, INTERRUPT = 9, 18, 2
STOPPING = frozenset({19, 20, 21, 22})  # not offered: nothing here can stop half-way
_HARMLESS = frozenset({17, CONTINUE, 23, 28})


class Reader(Protocol):
    """Somebody on a connection who receives a process's output as far as `credit` goes, in bytes."""

    credit: int

    def output(self, kind: str, data: bytes) -> None: ...


class Output:
    """Delivers to every reader at the pace of the slowest, and keeps the latest bytes for those to come."""

    def __init__(self) -> None:
        self.readers: list[Reader] = []
        self.lost = False
        self._kept: deque[tuple[str, bytes]] = deque()
        self._kept_bytes = 0
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Credit or readers changed."""
        self._wake.set()

    def join(self, reader: Reader, *, replay: bool) -> None:
        if replay:
            for kind, data in self._kept:
                reader.output(kind, data)
        self.readers.append(reader)

    def leave(self, reader: Reader) -> None:
        if reader in self.readers:
            self.readers.remove(reader)
        self.wake()

    async def write(self, kind: str, data: bytes) -> None:
        while data:
            room = min((reader.credit for reader in self.readers), default=CHUNK)
            if room <= 0:
                self._wake.clear()
                await self._wake.wait()
                continue
            part, data = data[: min(room, CHUNK)], data[min(room, CHUNK) :]
            self._keep(kind, part)
            for reader in self.readers:
                reader.output(kind, part)

    def _keep(self, kind: str, data: bytes) -> None:
        self._kept.append((kind, data))
        self._kept_bytes += len(data)
        while self._kept_bytes > RETAINED_OUTPUT:
            self.lost = True
            oldest, old = self._kept.popleft()
            surplus = self._kept_bytes - RETAINED_OUTPUT
            self._kept_bytes -= min(surplus, len(old))
            if surplus < len(old):
                self._kept.appendleft((oldest, old[surplus:]))


class OutputSink:
    """One of a process's output descriptors."""

    def __init__(self, output: Output, kind: str) -> None:
        self._output = output
        self.kind = kind

    async def write(self, data: bytes) -> None:
        if self.kind == TERMINAL:
            data = data.replace(b"\n", b"\r\n")
        await self._output.write(self.kind, data)


class Process:
    """`end` is None while it runs, then ``{"exit": n}`` or ``{"signal": n}``."""

    def __init__(self, pid: int, argv: list[str], *, cwd: str, env: dict[str, str], account: Account) -> None:
        self.pid = pid
        self.argv = argv
        self.cwd = cwd
        self.env = env
        self.account = account
        self.tag: str | None = None
        self.size: tuple[int, int] | None = None
        self.stdin: Pipe | None = None
        self.output: Output | None = None
        self.handlers: dict[int, Callable[[], None]] = {}
        self.jobs: set[Process] = set()
        self.end: Object | None = None
        self.ended = asyncio.Event()  # the process itself
        self.silent = asyncio.Event()  # nobody holds its output any more either
        self.timed_out = False
        self.ended_at = 0.0
        self._task: asyncio.Task[int] | None = None
        self._killed_by: int | None = None

    @property
    def source(self) -> Source:
        return self.stdin or Nothing()

    def facts(self) -> Object:
        return {
            "pid": self.pid,
            "tag": self.tag,
            "argv": self.argv,
            "cwd": self.cwd,
            "env": self.env,
            "pty": self.size is not None,
        }

    def started(self, task: asyncio.Task[int], now: Callable[[], float]) -> None:
        """`task` is its body; its end is this process's end."""
        self._task = task
        task.add_done_callback(lambda done: self._finished(done, now()))

    def _finished(self, task: asyncio.Task[int], at: float) -> None:
        if task.cancelled():
            self.end = {"signal": self._killed_by or KILL}
        elif task.exception() is not None:
            self.end = {"exit": 70}
        else:
            self.end = {"exit": task.result() & 0xFF}
        self.ended_at = at
        if self.stdin is not None:
            self.stdin.abandon()
        self.ended.set()
        if not self.jobs:
            self.silent.set()

    def share_output(self, job: Process) -> None:
        """`job` runs in the background and holds this process's output open."""
        self.jobs.add(job)

    def job_ended(self, job: Process) -> None:
        self.jobs.discard(job)
        if not self.jobs and self.end is not None:
            self.silent.set()

    def signal(self, number: int) -> None:
        """As kill(2): a handler of the program's own, else nothing for harmless ones, else the end."""
        if self.end is not None:
            return
        handler = self.handlers.get(number)
        if handler is not None and number != KILL:
            handler()
        elif number not in _HARMLESS:
            self.kill(number)

    def kill(self, number: int = KILL) -> None:
        if self.end is None and self._task is not None:
            self._killed_by = number
            self._task.cancel()

    def expire(self) -> None:
        """Its own deadline has passed: nobody waits for who else holds the output."""
        if self.end is None:
            self.timed_out = True
            self.kill()
        self.silent.set()
