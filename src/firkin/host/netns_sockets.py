"""TCP sockets inside another network namespace, made by this process.

A socket belongs for good to the namespace in which it was made. One thread of
its own enters the namespace, makes the socket, and goes back; a thread that
cannot go back ends, and the next request gets a new one.

What listens at the other end is hostile, and can do no more with such a socket
than send bytes: it is a plain stream, connected from here to the loopback
address in there, and its options cannot be reached from the other side.
"""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import threading
from contextlib import suppress

from firkin.host.syscalls import CLONE_NEWNET, setns

MADE_WITHIN_S = 5.0
_Wish = tuple[int, int, "asyncio.AbstractEventLoop", "asyncio.Future[socket.socket]"]


class _LostAbroad(OSError):
    """The thread could not leave a stranger's namespace."""


class NamespaceSockets:
    """Use from one event loop. `close` ends the thread."""

    def __init__(self) -> None:
        self._wishes: queue.SimpleQueue[_Wish | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def make(self, namespace: int, family: int) -> socket.socket:
        """A non-blocking TCP socket of `family` in the network namespace `namespace`, a descriptor.

        Raises `OSError`, `TimeoutError`.
        """
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=_serve, args=(self._wishes,), name="firkin-netns", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        made: asyncio.Future[socket.socket] = loop.create_future()
        own = os.dup(namespace)  # the caller's may be closed before the thread comes to it
        self._wishes.put((own, family, loop, made))
        async with asyncio.timeout(MADE_WITHIN_S):
            return await made

    def close(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._wishes.put(None)
            self._thread.join(MADE_WITHIN_S)
        self._thread = None


def _serve(wishes: queue.SimpleQueue[_Wish | None]) -> None:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while (wish := wishes.get()) is not None:
            namespace, family, loop, made = wish
            try:
                outcome: socket.socket | OSError = _made(namespace, family, home)
            except OSError as error:
                outcome = error
            finally:
                os.close(namespace)
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(_tell, made, outcome)
            if isinstance(outcome, _LostAbroad):
                return
    finally:
        os.close(home)


def _made(namespace: int, family: int, home: int) -> socket.socket:
    setns(namespace, CLONE_NEWNET)
    made: socket.socket | None = None
    failure: OSError | None = None
    try:
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        failure = error
    try:
        setns(home, CLONE_NEWNET)
    except OSError as error:
        if made is not None:
            made.close()
        raise _LostAbroad(error.errno, "the thread could not leave the network namespace") from error
    if made is None:
        raise failure or OSError("no socket")
    return made


def _tell(made: asyncio.Future[socket.socket], outcome: socket.socket | OSError) -> None:
    if made.done():  # whoever asked has gone
        if isinstance(outcome, socket.socket):
            outcome.close()
    elif isinstance(outcome, socket.socket):
        made.set_result(outcome)
    else:
        made.set_exception(outcome)
