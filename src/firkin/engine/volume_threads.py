"""The threads that work on volumes: shared by all owners, none of whom can take them all.

An owner begins one more piece of work only while more threads are free than it has at work:
alone it gets half of them, the next owner half of the rest, and there is always one for
somebody new. What it cannot begin waits in its own line, and is dropped there when its
caller has gone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from firkin.law.errors import CapacityRejected

MOST_WAITING = 512
T = TypeVar("T")
_Work = tuple[Future[Any], Callable[[], Any]]


@dataclass(slots=True, eq=False)
class _Line:
    """What one owner has under way."""

    waiting: deque[_Work] = field(default_factory=deque)
    at_work: int = 0


class VolumeThreads:
    def __init__(self, size: int) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix="firkin-volume-files")
        self._lock = threading.Lock()
        self._free = size
        self._lines: dict[str, _Line] = {}  # whoever has had a turn goes to the end
        self._closed = False

    def check_room(self, owner: str) -> None:
        """Before something new is begun: `CapacityRejected` when too much of the owner's waits already."""
        with self._lock:
            line = self._lines.get(owner)
            if line is None or len(line.waiting) < MOST_WAITING:
                return
            line.waiting = deque(work for work in line.waiting if not work[0].cancelled())
            if len(line.waiting) < MOST_WAITING:
                return
        short = "places in the line of calls for your volumes"
        raise CapacityRejected("use a volume", short, requested=1, available=0, limit=MOST_WAITING)

    def submit(self, owner: str, work: Callable[[], T]) -> Future[T]:
        """RuntimeError after `shutdown`."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the threads have ended")
            self._lines.setdefault(owner, _Line()).waiting.append((future, work))
            self._begin()
        return future

    def _begin(self) -> None:
        """Give away free threads, by turns. Under the lock."""
        begun = True
        while begun and self._free:
            begun = False
            for owner, line in list(self._lines.items()):
                if line.waiting and line.at_work < self._free:
                    self._start(owner, line)
                    begun = True

    def _start(self, owner: str, line: _Line) -> None:
        future, work = line.waiting.popleft()
        line.at_work += 1
        self._free -= 1
        self._lines[owner] = self._lines.pop(owner)
        self._pool.submit(self._do, owner, future, work)

    def _do(self, owner: str, future: Future[T], work: Callable[[], T]) -> None:
        try:
            _done(future, work)
        finally:
            with self._lock:
                line = self._lines[owner]
                line.at_work -= 1
                self._free += 1
                if not line.at_work and not line.waiting:
                    del self._lines[owner]
                if not self._closed:
                    self._begin()

    def shutdown(self) -> None:
        """Nothing more is taken; what waits is still done, in threads that nobody waits for."""
        with self._lock:
            self._closed = True
            for line in self._lines.values():
                for future, work in line.waiting:
                    self._pool.submit(_done, future, work)
                line.waiting.clear()
        self._pool.shutdown(wait=False)


def _done(future: Future[T], work: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 — told to whoever waits for it
        future.set_exception(error)
    else:
        future.set_result(result)
