"""Bytes on their way into a pipe, a terminal or a socket that may not take them yet."""

from __future__ import annotations

import os
from collections import deque

from firkin.guest.loop import WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firkin.guest.loop import Loop

_WRITE_SIZE = 64 * 1024


class Feeder:
    """Whoever pushed the bytes: told how they fare."""

    __slots__ = ()

    def written(self, amount: int) -> None: ...

    def finished(self) -> None:
        """Everything pushed before `Sink.mark` has been written."""

    def broken(self) -> None:
        """It will never be written: the reader is gone."""


class Sink:
    """A queue in front of a descriptor, which it owns. `on_end` runs instead of a close at the end of the input."""

    __slots__ = ("_fd", "_loop", "_on_end", "_queue", "ending", "open")

    def __init__(self, loop: Loop, fd: int, on_end: Callable[[], None] | None = None) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._on_end = on_end
        self._queue: deque[tuple[memoryview | None, Feeder | None]] = deque()
        self.open = True
        self.ending = False

    def push(self, data: bytes, feeder: Feeder) -> None:
        if not self.open or self.ending:
            feeder.broken()
            return
        self._queue.append((memoryview(data), feeder))
        self._drain()

    def mark(self, feeder: Feeder) -> None:
        if not self.open:
            feeder.broken()
            return
        self._queue.append((None, feeder))
        self._drain()

    def end(self) -> None:
        """Nothing more will be pushed: close once all is written."""
        if self.open and not self.ending:
            self.ending = True
            self._queue.append((None, None))
            self._drain()

    def close(self) -> None:
        """At once; whatever is queued is lost, and its feeders told."""
        if not self.open:
            return
        self.open = False
        self._loop.forget(self._fd)
        os.close(self._fd)
        queue, self._queue = self._queue, deque()
        for feeder in {id(feeder): feeder for _, feeder in queue if feeder is not None}.values():
            feeder.broken()

    def _ready(self, _events: int) -> None:
        self._drain()

    def _drain(self) -> None:
        queue = self._queue
        while queue and self.open:
            data, feeder = queue[0]
            if data is None:
                queue.popleft()
                self._reached(feeder)
                continue
            size = self._write(data)
            if size < 0:
                return
            if size == len(data):
                queue.popleft()
            else:
                queue[0] = (data[size:], feeder)
            if feeder is not None and size:
                feeder.written(size)
        if self.open:
            self._loop.watch(self._fd, WRITE if queue else 0, self._ready)

    def _write(self, data: memoryview) -> int:
        """Bytes written, or -1 when it must wait or is over."""
        try:
            return os.write(self._fd, data[:_WRITE_SIZE])
        except BlockingIOError:
            self._loop.watch(self._fd, WRITE, self._ready)
        except OSError:
            self.close()
        return -1

    def _reached(self, feeder: Feeder | None) -> None:
        if feeder is not None:
            feeder.finished()
            return
        if self._on_end is not None:
            self._on_end()
        self.close()
