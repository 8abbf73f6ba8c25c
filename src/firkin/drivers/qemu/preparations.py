"""Work that several wait for and nobody owns alone: it goes on when who asked first has given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Preparations(Generic[T]):
    """One piece of work at a time for each key. A failure is told to all who wait; who asks next tries again."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[T]] = {}

    async def wait(self, key: str, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What `make` returns, made now or by somebody before. Cancelling the caller does not stop it."""
        task = self._running.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(make(), name=f"prepare {key}")
            self._running[key] = task
            task.add_done_callback(lambda done: self._done(key, done))
        return await asyncio.shield(task)

    def _done(self, key: str, task: asyncio.Task[T]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # looked at, though all who waited may have gone

    async def aclose(self) -> None:
        """Stop what runs, and wait until it has stopped."""
        while tasks := list(self._running.values()):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
