"""A warm, single-threaded process that forks once for each sandbox: what launchers of all kinds share.

Started by the server as ``python -I -S -B`` with an empty environment. It holds
no secret, sees no host path that it does not need (its root is a tmpfs of its own), imports
everything before the first fork, and collects no garbage afterwards, so that
its pages stay shared with every child.

It dies with the server. The sandboxes do not.

Between a fork and what becomes of it nothing may be imported: after the pivot no module file
can be reached. That includes what Python imports lazily to *report* an error,
which is why `begin` makes one such report, where files can be found.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.py's enums cost a child 250 KB of its own pages
import array
import gc
import json
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from firkin.drivers.boxes.orders import Failure, LaunchOrder
from firkin.host import syscalls
from firkin.host.syscalls import CLONE_NEWNS, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC

_MESSAGE = 1 << 20
_FILLED = 64 * 1024
_FOLDERS = ("m", "loop", "lower", "disk", "empty", "frame", "frame/dev", "frame/proc", "frame/sys")

Launch = Callable[[LaunchOrder, list[int]], None]
Ended = Callable[[int, int], None]


def begin(control: int, parent: int) -> tuple[socket.socket, dict[str, Any]]:  # the JSON that `Launcher` sends
    """The socket to the server, and what it says first. From here on this process dies with the server."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    _report_once()
    channel = socket.socket(fileno=control)
    return channel, json.loads(channel.recv(_MESSAGE))


def _report_once() -> None:
    try:
        raise OSError(1, "warm-up")
    except OSError:
        traceback.format_exc()  # imports: `linecache` of Python 3.13 tokenize, at its first line of a source
    Failure.decode(Failure("warm-up", 0, "é\udcff").encode())


def own_root(scratch: str, bring: Callable[[str], None] = lambda _: None, *, mode: str = "700") -> None:
    """Move into an empty tmpfs: a fork's mount namespace then copies few mounts.

    `bring` adds some of the host's. With `mode` 755 the ids of sandboxes can pass through, too.
    """
    syscalls.unshare(CLONE_NEWNS)
    syscalls.mount("none", "/", None, MS_REC | MS_PRIVATE)
    syscalls.mount("tmpfs", scratch, "tmpfs", MS_NOSUID, f"mode={mode},size=64m,nr_inodes=8k")
    for name in _FOLDERS:
        os.mkdir(f"{scratch}/{name}")
    empty_flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY
    syscalls.mount("tmpfs", f"{scratch}/empty", "tmpfs", empty_flags, "mode=555,size=4k")
    bring(scratch)
    os.chdir(scratch)
    syscalls.pivot_into_cwd()


def freeze() -> list[object]:
    """Freeze the heap. What is returned must be kept."""
    gc.collect()
    filler = _fill_gaps()
    gc.freeze()
    gc.disable()
    return filler


def _fill_gaps() -> list[object]:
    """Use up the free places between objects, so that what a fork makes anew lies together on pages of its own.

    Python's allocator has places of 16 to 512 bytes and begins with the free ones
    that it has; they are scattered over pages that a fork would otherwise share.
    """
    empty = b"".__sizeof__()
    return [bytes(size - empty) for size in range(48, 513, 16) for _ in range(_FILLED // size)]


def serve(channel: socket.socket, launch: Launch, ended: Ended = lambda pid, status: None) -> None:
    """Say that we are ready; then `launch` each order with its descriptors, which are closed afterwards, until the
    server goes. `ended` is told the id and exit status of each child."""
    ended_read, ended_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(ended_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _nothing)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    waiting = select.poll()
    waiting.register(channel.fileno(), select.POLLIN)
    waiting.register(ended_read, select.POLLIN)
    channel.send(b"ready")
    while True:
        for fd, _ in waiting.poll():
            if fd == ended_read:
                _reap(ended_read, ended)
            elif not _launch_next(channel, launch):
                return


def receive(channel: socket.socket) -> tuple[LaunchOrder, list[int]] | None:
    """The next order with its descriptors; None when whoever gives them is gone."""
    message, ancillary, _, _ = channel.recvmsg(_MESSAGE, 4096, socket.MSG_CMSG_CLOEXEC)
    if not message:
        return None
    received = array.array("i")
    for _, _, data in ancillary:
        received.frombytes(data)
    return LaunchOrder.decode(message), list(received)


def answer(channel: socket.socket, facts: dict[str, Any], handle: int = -1) -> None:  # JSON
    """Tell the server, with the descriptor `handle` beside it if there is one."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [handle]))] if handle >= 0 else []
    channel.sendmsg([json.dumps(facts).encode()], rights)


def become_a_child() -> None:
    """In a fork: a session and signals of its own."""
    _signal.set_wakeup_fd(-1)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    os.setsid()


def explained(step: str, error: BaseException) -> Failure:
    text = traceback.format_exc() if not isinstance(error, OSError) else str(error)
    return Failure(step, getattr(error, "errno", 0) or 0, text)


class _TimedSteps(list[str]):
    """The step that a launch is in, and when each began."""

    def __init__(self, first: str) -> None:
        super().__init__([first])
        self.began = [(first, time.monotonic_ns())]

    def __setitem__(self, at: Any, name: Any) -> None:  # as `list` has it
        super().__setitem__(at, name)
        self.began.append((name, time.monotonic_ns()))


def steps(*, traced: bool) -> list[str]:
    """Where a launch is, as a list of one name that is replaced at each step."""
    return _TimedSteps("start") if traced else ["start"]


def all_done(step: list[str]) -> bytes:
    """What the report pipe is told at the end: that it worked and, of a traced launch, when each step began."""
    if not isinstance(step, _TimedSteps):
        return b"+"
    return b"+" + json.dumps([*step.began, ("ready", time.monotonic_ns())]).encode()


def _nothing(number: int, frame: object) -> None:
    """A handler must exist for the wake-up descriptor to be written."""


def _reap(wakeup: int, ended: Ended) -> None:
    with suppress(BlockingIOError):
        os.read(wakeup, 4096)
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            ended(pid, status)


def _launch_next(channel: socket.socket, launch: Launch) -> bool:
    received = receive(channel)
    if received is None:
        return False
    order, fds = received
    try:
        launch(order, fds)
    finally:
        for fd in fds:
            os.close(fd)
    return True
