"""A clock that stands still until a test moves it. It fits `firkin.engine.clock.Clock`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

START = datetime(2030, 1, 1, tzinfo=UTC)
MOST_STEPS = 2000
SETTLE_TURNS = 50


class VirtualClock:
    """Wall and monotonic time move together, by `advance` only."""

    def __init__(self, start: datetime = START) -> None:
        self._start = start
        self._elapsed = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep_until(self, monotonic: float) -> None:
        """Return once `advance` has reached `monotonic`. Other work runs at least once in between."""
        if monotonic <= self._elapsed:
            await asyncio.sleep(0)
            return
        sleeper = (monotonic, asyncio.get_running_loop().create_future())
        self._sleepers.append(sleeper)
        try:
            await sleeper[1]
        finally:
            self._sleepers.remove(sleeper)

    @property
    def next_due(self) -> float | None:
        """The earliest monotonic time that anybody sleeps until, or None."""
        return min((due for due, waiter in self._sleepers if not waiter.done()), default=None)

    async def advance(self, seconds: float) -> None:
        """Move time, waking sleepers in order of their time and letting each do its work first.

        After `MOST_STEPS` of that the rest is one step: years of periodic work are not lived through.
        """
        goal = self._elapsed + seconds
        await settle()
        for _ in range(MOST_STEPS):
            due = self.next_due
            if due is None or due > goal:
                break
            self._elapsed = max(self._elapsed, due)
            self._wake()
            await settle()
        self._elapsed = goal
        self._wake()
        await settle()

    def _wake(self) -> None:
        for due, waiter in list(self._sleepers):
            if due <= self._elapsed and not waiter.done():
                waiter.set_result(None)


async def settle(turns: int = SETTLE_TURNS) -> None:
    """Let everything that can run without waiting for the outside do so."""
    for _ in range(turns):
        await asyncio.sleep(0)


@contextmanager
def virtual_clock(start: datetime = START) -> Iterator[VirtualClock]:
    """A clock for one test; nobody may be left asleep on it at the end."""
    clock = VirtualClock(start)
    yield clock
    if clock.next_due is not None:
        raise AssertionError("somebody still sleeps on the virtual clock: a task was not ended")
