"""PID 1 of a sandbox: one thread, one epoll, many hosts.

`serve` runs in a forked, never executed child of a warm interpreter, in a root
where no module can be found: everything it may ever need is imported above.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.py's enums cost 200 KB of pages a sandbox
import _socket
import errno
import gc
import os
import resource
from contextlib import suppress

from firkin.guest import syscalls
from firkin.guest.accounts import Accounts
from firkin.guest.connections import Connection
from firkin.guest.door import Door
from firkin.guest.entries import Entries
from firkin.guest.faults import Refused
from firkin.guest.file_operations import FileOperations
from firkin.guest.loop import READ, Loop
from firkin.guest.machine import MachineOperations
from firkin.guest.process_operations import ProcessOperations
from firkin.guest.sockets import SocketOperations
from firkin.guest.spawn import UMASK, Spawner
from firkin.guest.transfers import Transfers
from firkin.guest.watch_operations import WatchOperations
from firkin.wire import codec
from firkin.wire.frames import HELLO, WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from firkin.guest.connections import Stream
    from firkin.guest.loop import Rest
    from firkin.guest.spawn import SpawnPlan
    from firkin.wire.codec import Object

_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)


def serve(listener_fd: int, *, spawn: SpawnPlan, ready: Callable[[], None]) -> NoReturn:
    """As `Agent().serve`, for a process that becomes one agent only."""
    Agent().serve(listener_fd, spawn=spawn, ready=ready)


class Agent:
    """Built before the fork, without a single descriptor, so that its pages stay shared; opened after it."""

    __slots__ = (
        "_at_rest",
        "_door",
        "_entries",
        "_listener",
        "_machine",
        "_operations",
        "_processes",
        "_spare",
        "_spawner",
        "_wakeup",
        "loop",
    )

    def __init__(self, accounts: Accounts | None = None) -> None:
        """`accounts`: by default those of the root that it will be in."""
        self.loop = Loop()
        self._at_rest: Rest | None = None
        accounts = accounts or Accounts()
        self._entries = entries = Entries(accounts)
        self._spawner = Spawner()
        self._processes = processes = ProcessOperations(self.loop, accounts, self._spawner)
        self._machine = MachineOperations(self.loop, processes)
        self._door = Door(self.loop, entries)
        self._operations: dict[str, Callable[[Stream, Object], None]] = {}
        for part in (
            processes,
            self._machine,
            FileOperations(self.loop, accounts, entries),
            Transfers(self.loop, accounts, entries),
            WatchOperations(self.loop, entries),
            SocketOperations(self.loop, self._door),
            self._door,
        ):
            self._operations.update(part.operations())

    def serve(
        self,
        listener_fd: int,
        *,
        spawn: SpawnPlan,
        ready: Callable[[], None],
        at_rest: Rest | None = None,
    ) -> NoReturn:
        """Answer every host that connects to the listening socket `listener_fd`, for ever.

        `ready` is called once connections are accepted, `at_rest` to wait whenever there has been nothing to do for a
        moment, once a program has ended that was no rehearsal: who waits for a first command is to be quick. Standard
        input and output must be /dev/null.
        """
        self._at_rest = at_rest
        self.begin(spawn)
        self._listener = _socket.socket(fileno=listener_fd)
        self._listener.setblocking(False)
        self.loop.watch(listener_fd, READ, self._accept)
        self.run(ready)

    def begin(self, spawn: SpawnPlan) -> None:
        """Open what every conversation needs."""
        os.umask(UMASK)
        _set_close_on_exec()
        _set_limits(spawn)
        self.loop.begin()
        self._entries.begin()
        self._spawner.begin(spawn)
        self._machine.begin()
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._wakeup = _wake_on_child()
        self.loop.watch(self._wakeup, READ, self._child_ended)

    def run(self, ready: Callable[[], None]) -> NoReturn:
        """Answer for ever; `ready` is called first."""
        gc.enable()
        ready()
        while True:
            with suppress(Exception):  # out of memory in the loop itself: the next turn may have some
                self.loop.turn()

    def take(self, connected: _socket.socket) -> None:
        """A host is at the other end of that socket: greet it."""
        connection = Connection(self.loop, connected, self._open)
        connection.send(HELLO, 0, codec.encode(self._machine.hello))

    def renew(self) -> None:
        """It is another agent from now on, in the same place: of a machine that was woken up a second time."""
        self._machine.begin()
        self._door.forget()

    def _child_ended(self, _events: int) -> None:
        with suppress(BlockingIOError):
            os.read(self._wakeup, 4096)
        self._machine.reap()
        if self._at_rest is not None and self._processes.in_use:
            self.loop.at_rest(self._at_rest)
            self._at_rest = None

    def _accept(self, _events: int) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # what socket.accept() is made of
        except OSError as error:
            if error.errno in _SHORTAGES:
                self._turn_away()
            return
        self.take(_socket.socket(fileno=fd))

    def _turn_away(self) -> None:
        """No descriptor is left: use the spare one to hang up, or the waiting host would keep us spinning."""
        if self._spare >= 0:
            os.close(self._spare)
        with suppress(OSError):
            os.close(self._listener._accept()[0])  # type: ignore[attr-defined]
        try:
            self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._spare = -1

    def _open(self, stream: Stream, operation: str, args: Object) -> None:
        handler = self._operations.get(operation)
        try:
            if handler is None:
                raise Refused("unsupported", f"operation {operation!r} is not known here")
            handler(stream, args)
        except WireError as error:
            stream.error(Refused("invalid", str(error)))
        except Exception as error:  # noqa: BLE001 — told to the host
            path = args.get("path")
            stream.error(error, path if isinstance(path, str) else None)


def _wake_on_child() -> int:
    """A descriptor that is readable after SIGCHLD.

    Every other signal gets its default action, which the kernel denies to PID 1:
    a Python handler would make it mortal.
    """
    for number in range(1, _signal.NSIG):
        if number not in (_signal.SIGKILL, _signal.SIGSTOP, _signal.SIGPIPE, _signal.SIGCHLD):
            try:
                _signal.signal(number, _signal.SIG_DFL)
            except (OSError, ValueError):  # the two that the C library keeps for itself
                continue
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    _signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
    _signal.signal(_signal.SIGCHLD, _nothing)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    return reading


def _nothing(_number: int, _frame: object) -> None:
    """The wakeup descriptor is written only for signals that have a handler."""


def _set_close_on_exec() -> None:
    """Whoever forked us may have forgotten one, and what is open here must not be open in any program."""
    with suppress(OSError):  # before Linux 5.11; every descriptor of ours is opened close-on-exec anyway
        syscalls.close_on_exec(3)


def _set_limits(spawn: SpawnPlan) -> None:
    if spawn.nofile:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = spawn.nofile if hard == resource.RLIM_INFINITY else min(spawn.nofile, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    if spawn.hardened:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
