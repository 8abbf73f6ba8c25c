"""What stops an instance where it is: nothing held by a shut gate takes another step."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Gate:
    """Open while the instance runs, shut while it is frozen. Both moves are idempotent."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._shut_at = 0.0
        self._shut_s = 0.0

    def now(self) -> float:
        """The time inside, which stands still behind a shut gate."""
        until = asyncio.get_running_loop().time() if self._open.is_set() else self._shut_at
        return until - self._shut_s

    def shut(self) -> None:
        if self._open.is_set():
            self._shut_at = asyncio.get_running_loop().time()
            self._open.clear()

    def open(self) -> None:
        if not self._open.is_set():
            self._shut_s += asyncio.get_running_loop().time() - self._shut_at
            self._open.set()

    async def passed(self) -> None:
        while not self._open.is_set():
            await self._open.wait()

    async def hold(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run the work; between any two of its steps the gate must be open. A cancellation passes a shut gate."""
        return await _Held(work(), self)


class _Held(Awaitable[T], Generic[T]):
    """Drives a coroutine by hand, to wait before each of its steps."""

    def __init__(self, work: Coroutine[Any, Any, T], gate: Gate) -> None:
        self._work = work
        self._gate = gate

    def __await__(self) -> Generator[Any, Any, T]:
        failure: BaseException | None = None
        while True:
            if failure is None:
                try:
                    yield from self._gate.passed().__await__()
                except BaseException as error:  # noqa: BLE001 — it is the work's to handle
                    failure = error
            try:
                waits_for = self._work.send(None) if failure is None else self._work.throw(failure)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]  # a generator's value has no type
            failure = None
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001 — it is the work's to handle
                failure = error
