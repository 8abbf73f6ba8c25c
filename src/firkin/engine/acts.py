"""Work that its caller may walk away from.

An act that began goes on to its end although whoever asked was cancelled: a
half-ended sandbox is nobody's wish. Its failure goes to the asker, if still there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from firkin.lifetimes import Children

T = TypeVar("T")


class Acts:
    """Acts owned by the engine. `drain` waits for those under way."""

    def __init__(self, owner: Children) -> None:
        self._owner = owner
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[tuple[T | None, Exception | None]]:
        """Begin; the task's result is the value or the failure, and it never raises."""
        task = self._owner.start(_outcome(work), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: work.close())  # cancelled before its first step, it would never be awaited
        return task

    async def run(self, work: Coroutine[Any, Any, T], *, name: str) -> T:
        """The act's value. Cancelling the caller leaves the act running."""
        value, failure = await asyncio.shield(self.start(work, name=name))
        if failure is not None:
            raise failure
        return value  # type: ignore[return-value]  # no failure means there is a value

    async def drain(self, *, within_s: float) -> None:
        """Wait until no act is under way, at most `within_s`."""
        if self._running:
            await asyncio.wait(tuple(self._running), timeout=within_s)


async def _outcome(work: Coroutine[Any, Any, T]) -> tuple[T | None, Exception | None]:
    try:
        return await work, None
    except Exception as failure:  # noqa: BLE001 — root of the act; `run` raises it to the asker
        return None, failure
