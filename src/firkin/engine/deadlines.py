"""One task over one heap ends whatever has lived long enough.

It sleeps until the earliest deadline and is woken when an earlier one arrives.
A renewal leaves its old heap entry behind; stale entries are passed over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from firkin.engine.clock import Clock
from firkin.law.ids import SandboxId
from firkin.lifetimes import children


class Deadlines:
    """`expire` is called once for each deadline that passes; it must not wait."""

    def __init__(self, clock: Clock, expire: Callable[[SandboxId], None]) -> None:
        self._clock = clock
        self._expire = expire
        self._due: dict[SandboxId, float] = {}
        self._heap: list[tuple[float, SandboxId]] = []
        self._earlier = asyncio.Event()

    def arm(self, sandbox_id: SandboxId, in_s: float | None) -> None:
        """End it `in_s` seconds from now, in place of any earlier wish; None means never."""
        if in_s is None:
            self._due.pop(sandbox_id, None)
            return
        at = self._clock.monotonic() + in_s
        first = self._heap[0][0] if self._heap else None
        self._due[sandbox_id] = at
        heappush(self._heap, (at, sandbox_id))
        self._compact()
        if first is None or at < first:
            self._earlier.set()

    def disarm(self, sandbox_id: SandboxId) -> None:
        self._due.pop(sandbox_id, None)

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            self._earlier.clear()
            self._expire_due()
            await self._sleep()

    def _expire_due(self) -> None:
        now = self._clock.monotonic()
        while self._heap and self._heap[0][0] <= now:
            at, sandbox_id = heappop(self._heap)
            if self._due.get(sandbox_id) == at:
                del self._due[sandbox_id]
                self._expire(sandbox_id)

    async def _sleep(self) -> None:
        if not self._heap:
            await self._earlier.wait()
            return
        async with children() as waiting:
            due = waiting.start(self._clock.sleep_until(self._heap[0][0]), name="next deadline")
            sooner = waiting.start(self._earlier.wait(), name="an earlier deadline")
            await asyncio.wait((due, sooner), return_when=asyncio.FIRST_COMPLETED)

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._due) + 64:
            self._heap = [(at, sandbox_id) for sandbox_id, at in self._due.items()]
            heapify(self._heap)
