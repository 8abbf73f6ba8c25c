"""Every task has an owner; cleanup that began is allowed to end.

`children()` owns background work for the length of a block. `finish()` runs a
clean-up to its end even when the caller is cancelled a second time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Children:
    """Background tasks of one owner. A failure is kept and raised when the owner ends."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failure: BaseException | None = None

    def start(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and self._failure is None:
            self._failure = task.exception()

    async def aclose(self) -> None:
        """Cancel and await all; then raise the first failure that any of them had."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


@asynccontextmanager
async def children() -> AsyncIterator[Children]:
    """An owner for tasks: none of them outlives the block, and a failure in one is raised at its end."""
    owned = Children()
    try:
        yield owned
    except BaseException:
        with suppress(Exception):  # the block's own failure is the one to tell
            await owned.aclose()
        raise
    else:
        await owned.aclose()


async def finish(cleanup: Coroutine[Any, Any, T], *, within_s: float) -> T:
    """Run `cleanup` to its end, at most `within_s`, through cancellation; then let the cancellation through.

    Raises `TimeoutError` when the time is up; the clean-up is cancelled then.
    """
    task = asyncio.get_running_loop().create_task(_bounded(cleanup, within_s), name="cleanup")
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
            cancelled = True
        except BaseException:  # noqa: BLE001 — result() below raises it again
            break
    if cancelled:
        task.exception()
        raise asyncio.CancelledError
    return task.result()


async def _bounded(cleanup: Coroutine[Any, Any, T], within_s: float) -> T:
    async with asyncio.timeout(within_s):
        return await cleanup
