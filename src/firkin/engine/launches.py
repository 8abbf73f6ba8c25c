"""How many sandboxes are brought up at once: a burst is worked off at the machine's own pace.

More at once than the machine has use for makes each of them slower and none of
them earlier. Launches that somebody waits for come before those that fill a pool.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

from firkin.engine.admission import Admission
from firkin.law.errors import CapacityRejected, Refusal, RejectReason

TURN_WITHIN_S = 60.0
MOST_WAITING = 1024  # of one owner
Turn: TypeAlias = asyncio.Future[None]
_FOR_EACH_CPU = 8  # measured on two: a hundred at once take a quarter less time by 16 than all together
_LEAST = 8


def launches_at_once(cpus: int | None = None) -> int:
    """As many as keep the machine busy: a launch waits for disks and forks for most of its time."""
    return max(_LEAST, _FOR_EACH_CPU * (cpus or os.cpu_count() or 1))


class _Queues:
    """Those who wait, by owner: the owners are served by turns, and each in the order of asking."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, deque[Turn]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def of(self, owner: str) -> int:
        return len(self._of.get(owner, ()))

    def add(self, owner: str, turn: Turn) -> None:
        self._of.setdefault(owner, deque()).append(turn)

    def remove(self, owner: str, turn: Turn) -> bool:
        """Whether it waited still."""
        queue = self._of.get(owner, deque())
        if turn not in queue:
            return False
        queue.remove(turn)
        if not queue:
            del self._of[owner]
        return True

    def next(self) -> Turn:
        owner, queue = self._of.popitem(last=False)
        turn = queue.popleft()
        if queue:
            self._of[owner] = queue
        return turn


class Launches:
    """Turns to bring up a sandbox."""

    def __init__(self, admission: Admission, at_once: int) -> None:
        self._admission = admission
        self.at_once = at_once
        self.running = 0
        self._wanted, self._background = _Queues(), _Queues()

    @property
    def waiting(self) -> int:
        """Those that somebody waits for."""
        return len(self._wanted)

    @asynccontextmanager
    async def turn(self, operation: str, owner: str, *, background: bool = False) -> AsyncIterator[None]:
        """A turn for the length of a block. `background` takes those that nobody else wants.

        `CapacityRejected` when none comes up in time, or when the machine has fallen below its
        floors by then: many were admitted on one measurement.
        """
        await self._come_up(operation, owner, self._background if background else self._wanted)
        try:
            self._admission.check_floors(operation)
            yield
        finally:
            self.running -= 1
            self._next()

    async def _come_up(self, operation: str, owner: str, queues: _Queues) -> None:
        if self.running < self.at_once and not self._wanted:
            self.running += 1
            return
        if queues.of(owner) >= MOST_WAITING:
            raise self._refused(operation, RejectReason.QUEUE_FULL, 0.0)
        turn = asyncio.get_running_loop().create_future()
        queues.add(owner, turn)
        try:
            async with asyncio.timeout(TURN_WITHIN_S):
                await turn
        except BaseException as error:
            if not queues.remove(owner, turn):
                self._give_back(turn)
            if isinstance(error, TimeoutError):
                raise self._refused(operation, RejectReason.DEADLINE_PASSED, TURN_WITHIN_S) from None
            raise

    def _give_back(self, turn: Turn) -> None:
        if turn.done() and not turn.cancelled():  # it came in the moment in which the caller left
            self.running -= 1
            self._next()

    def _next(self) -> None:
        while self.running < self.at_once:
            queues = self._wanted or self._background
            if not queues:
                return
            turn = queues.next()
            if not turn.done():
                self.running += 1
                turn.set_result(None)

    def _refused(self, operation: str, reason: RejectReason, waited_s: float) -> CapacityRejected:
        refusal = Refusal(reason=reason, waited_s=waited_s, position=len(self._wanted) + 1, retry_after_s=5.0)
        short = CapacityRejected(operation, "launches at once", requested=1, available=0, limit=self.at_once)
        return short.because(refusal)
