"""The operations on programs: start, attach, input, signal and their kin."""

from __future__ import annotations

import os

from firkin.guest.connections import Taker
from firkin.guest.faults import Refused
from firkin.guest.processes import Process, Processes
from firkin.guest.sinks import Feeder, Sink
from firkin.guest.spawn import Program, Spawner, resize
from firkin.wire import codec
from firkin.wire.frames import WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firkin.guest.accounts import Accounts
    from firkin.guest.connections import Stream
    from firkin.guest.loop import Loop
    from firkin.wire.codec import Object


class _Input(Taker, Feeder):
    """Bytes for a program's standard input; answered once all are in the pipe."""

    __slots__ = ("_pending", "_sink", "_stream")

    def __init__(self, stream: Stream, sink: Sink) -> None:
        self._stream = stream
        self._sink = sink
        self._pending = 0

    def data(self, payload: bytes) -> None:
        self._pending += len(payload)
        self._sink.push(payload, self)

    def eof(self) -> None:
        if self._pending:
            self._sink.mark(self)
        else:  # it is all in the pipe, even if the program has read it and ended meanwhile
            self.finished()

    def written(self, amount: int) -> None:
        self._pending -= amount
        self._stream.grant(amount)

    def finished(self) -> None:
        self._stream.result({})

    def broken(self) -> None:
        self._stream.error(Refused("stdin_closed", "stdin is not enabled or closed"))


class ProcessOperations:
    """`closing` refuses new programs, while the sandbox shuts down.

    `in_use`: somebody has started one, and not only whoever made the sandbox for somebody to come.
    """

    __slots__ = ("_accounts", "_loop", "_spawner", "closing", "in_use", "table")

    def __init__(self, loop: Loop, accounts: Accounts, spawner: Spawner) -> None:
        self._loop = loop
        self._accounts = accounts
        self._spawner = spawner
        self.table = Processes(loop)
        self.closing = False
        self.in_use = False

    def operations(self) -> dict[str, Callable[[Stream, Object], None]]:
        return {
            "start": self.start,
            "attach": self.attach,
            "processes": self.processes,
            "input": self.input,
            "close_stdin": self.close_stdin,
            "signal": self.signal,
            "resize": self.resize,
            "user": self.user,
        }

    def start(self, stream: Stream, args: Object) -> None:
        if self.closing:
            raise Refused("gone", "the sandbox is shutting down")
        account = self._accounts.lookup(codec.text(args, "user", ""))
        env = codec.mapping(args, "env")
        program = Program(account, codec.texts(args, "argv"), codec.text(args, "cwd", ""), env)
        tag = codec.text(args, "tag") if args.get("tag") is not None else None
        timeout_ms = codec.integer(args, "timeout_ms", 0)
        feeds = codec.flag(args, "input")
        process = self._spawned(program, env, tag, args)
        self.table.add(process)
        self.in_use = self.in_use or not codec.flag(args, "rehearsal")
        if timeout_ms > 0:
            process.kill_after(self._loop, timeout_ms / 1000)
        stream.event({"pid": process.pid})
        process.attach(stream, feeds=feeds)

    def _spawned(self, program: Program, env: dict[str, str], tag: str | None, args: Object) -> Process:
        size = args.get("pty")
        if size is not None:
            rows, cols = _size(size)
            pid, master = self._spawner.on_terminal(program, rows, cols)
            process = Process(self.table, pid, program, env, tag)
            process.use_terminal(self._loop, master)
            return process
        stdin = codec.flag(args, "stdin") or codec.flag(args, "input")
        pid, stdin_fd, stdout, stderr = self._spawner.piped(program, stdin=stdin)
        process = Process(self.table, pid, program, env, tag)
        process.use_pipes(self._loop, stdin_fd, stdout, stderr)
        return process

    def attach(self, stream: Stream, args: Object) -> None:
        process = self._process(args)
        stream.event(process.describe())
        replay = codec.flag(args, "replay")
        if replay:
            process.replay(stream)
        lost = replay and process.retained.truncated
        if not process.finish(stream, truncated=lost):
            process.attach(stream, lost=lost)

    def processes(self, stream: Stream, _args: Object) -> None:
        stream.result({"processes": [process.describe() for process in self.table.running()]})

    def input(self, stream: Stream, args: Object) -> None:
        process = self._process(args, alive=True)
        sink = process.stdin
        if sink is None or not sink.open or sink.ending:
            raise Refused("stdin_closed", "stdin is not enabled or closed")
        stream.taker = _Input(stream, sink)

    def close_stdin(self, stream: Stream, args: Object) -> None:
        process = self._process(args)
        if process.terminal:
            raise Refused("pty_stdin", "the input of a terminal cannot be closed; send Ctrl-D (0x04) instead")
        process.end_input()
        stream.result({})

    def signal(self, stream: Stream, args: Object) -> None:
        number = codec.integer(args, "signal")
        if not 1 <= number <= 64:
            raise Refused("invalid", f"{number} is not a signal")
        self._process(args, alive=True).signal(number)
        stream.result({})

    def resize(self, stream: Stream, args: Object) -> None:
        process = self._process(args, alive=True)
        if process.master < 0:
            raise Refused("not_a_pty", f"process {process.pid} has no terminal")
        resize(process.master, *_size([args.get("rows"), args.get("cols")]))
        stream.result({})

    def user(self, stream: Stream, args: Object) -> None:
        account = self._accounts.lookup(codec.text(args, "name", ""))
        stream.result(
            {
                "name": account.name,
                "uid": account.uid,
                "gid": account.gid,
                "home": account.home,
                "shell": account.shell,
            }
        )

    def _process(self, args: Object, *, alive: bool = False) -> Process:
        if "pid" in args:
            name: int | str = codec.integer(args, "pid")
            process = self.table.by_pid(int(name))
            what = f"pid {name}"
        else:
            name = codec.text(args, "tag")
            process = self.table.by_tag(name)
            what = f"tag {name!r}"
        if process is None or (alive and not process.alive):
            raise Refused("no_process", f"process with {what} not found")
        return process


def _size(value: object) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2:
        rows, cols = value
        if isinstance(rows, int) and isinstance(cols, int) and 0 <= rows < 65536 and 0 <= cols < 65536:
            return rows, cols
    raise WireError("a terminal has rows and columns of 0…65535")


def end_all(table: Processes, number: int) -> None:
    """Signal every process there is: all others of the pid namespace when we are its first, else those we started."""
    try:
        if os.getpid() == 1:
            os.kill(-1, number)
        else:
            for process in table.running():
                process.signal(number)
    except ProcessLookupError:
        return
