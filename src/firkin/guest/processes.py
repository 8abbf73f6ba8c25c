"""The programs that were started here: their output, input, readers and ends."""

from __future__ import annotations

import os

from firkin.guest.connections import Taker
from firkin.guest.outputs import Output, Retained
from firkin.guest.sinks import Feeder, Sink
from firkin.wire.frames import CHUNK, DATA, DATA_ERR
from firkin.wire.operations import EXIT_KEPT_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firkin.guest.connections import Stream
    from firkin.guest.loop import Loop, Timer
    from firkin.guest.spawn import Program
    from firkin.wire.codec import Object

_SIGKILL = 9
_MOST_ENDED = 65_536
_MOST_ENDED_BYTES = 8 << 20
_NOTHING_KEPT, _LOST = Retained(), Retained()
_LOST.truncated = True


class Reader(Taker, Feeder):
    """A stream that gets a program's output; with `feeds`, its data is the program's input."""

    __slots__ = ("_deaf", "_feeds", "_process", "lost", "stream")

    def __init__(self, process: Process, stream: Stream, *, feeds: bool, lost: bool) -> None:
        self._process = process
        self.stream = stream
        self.lost = lost
        self._feeds = feeds
        self._deaf = False

    def data(self, payload: bytes) -> None:
        sink = self._process.stdin
        if self._feeds and sink is not None and not self._deaf:
            sink.push(payload, self)
        else:
            self.stream.grant(len(payload))  # nobody reads it; the host must not wait for that

    def eof(self) -> None:
        if self._feeds:
            self._process.end_input()

    def resume(self) -> None:
        self._process.resume()

    def cancelled(self) -> None:
        self._process.detach(self)

    def written(self, amount: int) -> None:
        self.stream.grant(amount)

    def broken(self) -> None:
        self._deaf = True
        self.stream.grant(CHUNK)


class Process:
    """One started program, until `EXIT_KEPT_S` after its end.

    How it ended is kept all that time. What it wrote and how it was started may
    take a megabyte and more, so that is kept only while there is room (`shed`).
    """

    __slots__ = (
        "_cut",
        "_outputs",
        "_readers",
        "_result",
        "_table",
        "_timer",
        "argv",
        "cwd",
        "ended_at",
        "env",
        "master",
        "pid",
        "retained",
        "stdin",
        "tag",
        "terminal",
        "timed_out",
    )

    def __init__(self, table: Processes, pid: int, program: Program, env: dict[str, str], tag: str | None) -> None:
        self._table = table
        self.pid = pid
        self.argv = program.argv
        self.cwd = program.cwd
        self.env = env
        self.tag = tag
        self.terminal = False
        self.master = -1  # of the terminal, while it is open
        self.stdin: Sink | None = None
        self.retained = Retained()
        self.timed_out = False
        self.ended_at = 0.0
        self._outputs: list[Output] = []
        self._readers: list[Reader] = []
        self._result: Object | None = None
        self._timer: Timer | None = None
        self._cut = False  # whoever else holds the pipes is not waited for

    @property
    def alive(self) -> bool:
        return self._result is None

    def weight(self) -> int:
        """How many bytes `shed` would set free, about."""
        words = sum(map(len, self.argv)) + sum(len(name) + len(value) for name, value in self.env.items())
        return len(self.retained) + words

    def shed(self) -> None:
        """Keep of an ended program only that it was there, and how it ended."""
        self.retained = _LOST if len(self.retained) else _NOTHING_KEPT
        self.argv, self.env = [], {}

    def describe(self) -> Object:
        facts: Object = {"pid": self.pid, "tag": self.tag, "argv": self.argv, "cwd": self.cwd, "env": self.env}
        facts["pty"] = self.terminal
        return facts

    def use_pipes(self, loop: Loop, stdin: int, stdout: int, stderr: int) -> None:
        if stdin >= 0:
            self.stdin = Sink(loop, stdin)
        self._outputs = [Output(loop, self, stdout, DATA), Output(loop, self, stderr, DATA_ERR)]

    def use_terminal(self, loop: Loop, master: int) -> None:
        self.terminal = True
        self.master = master
        self.stdin = Sink(loop, os.dup(master))  # its own descriptor: input and output wait apart
        self._outputs = [Output(loop, self, master, DATA)]

    def kill_after(self, loop: Loop, seconds: float) -> None:
        self._timer = loop.after(seconds, self._overdue)

    def attach(self, stream: Stream, *, feeds: bool = False, lost: bool = False) -> None:
        """`lost`: replay could not give all there was."""
        reader = Reader(self, stream, feeds=feeds, lost=lost)
        stream.taker = reader
        self._readers.append(reader)
        self.resume()

    def replay(self, stream: Stream) -> None:
        for kind, data in self.retained.pieces():
            stream.data(data, kind)

    def detach(self, reader: Reader) -> None:
        if reader in self._readers:
            self._readers.remove(reader)
        self.resume()

    def room(self) -> int:
        """How much may be read: what the slowest reader has room for."""
        room = CHUNK
        for reader in self._readers:
            room = min(room, reader.stream.room())
        return room

    def took(self, kind: int, data: bytes) -> None:
        self.retained.add(kind, data)
        for reader in self._readers:
            reader.stream.data(data, kind)
        if self._readers and not self.room():
            self._listen()

    def resume(self) -> None:
        if self._cut:
            self._wind_up()
        else:
            self._listen()

    def _listen(self) -> None:
        for output in self._outputs:
            output.listen()

    def end_input(self) -> None:
        if self.stdin is not None and not self.terminal:
            self.stdin.end()

    def output_closed(self, output: Output) -> None:
        self._outputs.remove(output)
        if self.terminal:
            self.master = -1
        self._settle()

    def signal(self, number: int) -> None:
        if self.alive:  # reaped only by us, so the number cannot be another's
            os.kill(self.pid, number)

    def reaped(self, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        self._result = {"exit": code} if code >= 0 else {"signal": -code}
        if self.timed_out:
            self._result["timed_out"] = True
        if self.stdin is not None:
            self.stdin.close()
        for output in list(self._outputs):
            output.empty()
        if self.timed_out or self.terminal:  # whose session ends with it; gVisor's never hangs up by itself
            self._wind_up()
        self._settle()

    def finish(self, stream: Stream, *, truncated: bool = False) -> bool:
        """Tell `stream` how it ended; False when it has not."""
        if self._result is None or self._outputs:
            return False
        stream.result({**self._result, "truncated": True} if truncated else self._result)
        return True

    def _overdue(self) -> None:
        if self.alive:
            self.timed_out = True
            self.signal(_SIGKILL)
        else:
            self._wind_up()

    def _wind_up(self) -> None:
        self._cut = True
        for output in list(self._outputs):
            output.wind_up()

    def _settle(self) -> None:
        if self._result is None or self._outputs or self.ended_at:
            return
        self.ended_at = self._table.now()
        if self._timer is not None:
            self._timer.cancel()
        readers, self._readers = self._readers, []
        for reader in readers:
            self.finish(reader.stream, truncated=reader.lost)
        self._table.ended(self)


class Processes:
    """All of them, by pid and by tag, and the reaping."""

    __slots__ = ("_by_pid", "_by_tag", "_ended", "_expiring", "_full", "_full_bytes", "_loop")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._by_pid: dict[int, Process] = {}
        self._by_tag: dict[str, Process] = {}
        self._ended: dict[int, Process] = {}  # oldest first
        self._full: dict[int, int] = {}  # those of them that have not been shed, oldest first, and their weight
        self._full_bytes = 0
        self._expiring = False

    def now(self) -> float:
        return self._loop.now()

    def add(self, process: Process) -> None:
        self._forget(self._by_pid.get(process.pid))
        self._by_pid[process.pid] = process
        if process.tag is not None:
            self._by_tag[process.tag] = process

    def by_pid(self, pid: int) -> Process | None:
        self.expire()
        return self._by_pid.get(pid)

    def by_tag(self, tag: str) -> Process | None:
        self.expire()
        return self._by_tag.get(tag)

    def running(self) -> list[Process]:
        return [process for process in self._by_pid.values() if process.alive]

    def reap(self, most: int) -> bool | None:
        """Collect ended children: True when there may be more, False when not, None when no child is left."""
        for _ in range(most):
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return None
            if not pid:
                return False
            process = self._by_pid.get(pid)
            if process is not None and process.alive:
                process.reaped(status)
        return True

    def ended(self, process: Process) -> None:
        self._ended[process.pid] = process
        self._full[process.pid] = process.weight()
        self._full_bytes += process.weight()
        while self._full_bytes > _MOST_ENDED_BYTES:
            oldest = next(iter(self._full))
            self._full_bytes -= self._full.pop(oldest)
            self._ended[oldest].shed()
        while len(self._ended) > _MOST_ENDED:
            self._forget(next(iter(self._ended.values())))
        self._expire_later()

    def expire(self) -> None:
        limit = self.now() - EXIT_KEPT_S
        while self._ended:
            oldest = next(iter(self._ended.values()))
            if oldest.ended_at > limit:
                return
            self._forget(oldest)

    def _expire_later(self) -> None:
        """Also what lets the loop notice a freeze: without a timer it does not look at the clock."""
        if self._ended and not self._expiring:
            self._expiring = True
            oldest = next(iter(self._ended.values()))
            self._loop.after(oldest.ended_at + EXIT_KEPT_S - self.now(), self._expire_now)

    def _expire_now(self) -> None:
        self._expiring = False
        self.expire()
        self._expire_later()

    def _forget(self, process: Process | None) -> None:
        if process is None:
            return
        if self._ended.pop(process.pid, None) is not None:
            self._full_bytes -= self._full.pop(process.pid, 0)
        if self._by_pid.get(process.pid) is process:
            del self._by_pid[process.pid]
        if process.tag is not None and self._by_tag.get(process.tag) is process:
            del self._by_tag[process.tag]
