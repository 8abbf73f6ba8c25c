"""An agent's first commands, done before there is an agent, so that its forks have less to write.

A fork shares the pages of the process that it was forked from until it writes to
them, and Python writes where it only reads: it specialises the code that has
run a few times, fills its caches of attributes, and counts references. What was
done once before the fork need not be done after it, which leaves a fifth of an
agent's pages shared: four hundred kilobytes a sandbox, and the time to copy them.

Nothing of the host gets into the process by this: no accounts are read, and the
program that is run says nothing.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # as in `agent`
import _socket
import gc
import os
from contextlib import suppress

from firkin.guest.accounts import Accounts
from firkin.guest.agent import Agent
from firkin.guest.spawn import SpawnPlan
from firkin.wire import codec
from firkin.wire.frames import ERROR, OPEN, RESULT, FrameReader, frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firkin.wire.codec import Object

ROUNDS = 9  # Python specialises a function when it has run eight times
_PROGRAM = "/bin/true"
_NOWHERE = "/nowhere"
_ROUND_WITHIN_S = 0.25
_START: Object = {"op": "start", "argv": [_PROGRAM], "env": {}, "cwd": "/", "user": "", "stdin": False, "pty": None}
_INTRODUCE: Object = {"op": "introduce", "files": {f"{_NOWHERE}/file": "text"}, "env": {"NAME": "value"}, "port": 0}


def rehearse() -> None:
    """Be an agent for some milliseconds, and then what this process was before. One thread, no children, SIGCHLD free.

    A program that cannot be started here is rehearsed as far as it comes.
    """
    before, mask = _descriptors(), os.umask(0o022)
    for _ in range(ROUNDS):
        _play()
    _signal.set_wakeup_fd(-1)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    os.umask(mask)
    gc.collect()  # what owns a descriptor closes it now, and not when the number is another's
    for fd in _descriptors() - before:
        os.close(fd)


def _play() -> None:
    agent = Agent(Accounts(_NOWHERE, _NOWHERE))
    agent.begin(SpawnPlan())
    theirs, host = _socket.socketpair()
    agent.take(theirs)
    host.setblocking(False)
    frames = FrameReader()
    for number, asked in enumerate((_INTRODUCE, _START), 1):
        host.send(frame(OPEN, number, codec.encode(asked)))
        _await_end(agent, host, frames)
    host.close()
    agent.loop.after(0, _nothing)
    agent.loop.turn()


def _await_end(agent: Agent, host: _socket.socket, frames: FrameReader) -> None:
    late = agent.loop.now() + _ROUND_WITHIN_S
    while agent.loop.now() < late:
        patience = agent.loop.after(_ROUND_WITHIN_S, _nothing)
        agent.loop.turn()
        patience.cancel()
        with suppress(BlockingIOError):
            if any(kind in (RESULT, ERROR) for kind, _, _ in frames.feed(host.recv(1 << 16))):
                return


def _descriptors() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that looked
            os.fstat(int(name))
            found.add(int(name))
    return found


def _nothing() -> None:
    """There is a turn to be had."""
