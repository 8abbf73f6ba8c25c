"""Who waits for room: first come, first served, and no tenant before another's turn.

Each tenant's wishes are served in their order, tenants by turns. Nobody is
overtaken for being large: the wait is short and bounded, for everybody. A caller
that is cancelled leaves at once, and what it was given in the same moment goes back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from firkin.engine.admission import Admission, Reservation
from firkin.engine.backpressure import Line, answer, retry_after_s
from firkin.engine.clock import Clock
from firkin.engine.spare import SpareRoom
from firkin.law.errors import CapacityRejected, FirkinError, Refusal, RejectReason
from firkin.law.pressure import BackpressurePolicy, LineStatus, Queue, Reject
from firkin.law.resources import SandboxResources
from firkin.lifetimes import Children

LOOK_EVERY_S = 0.25  # what the machine has free is measured no more often
GIVE_UP_WITHIN_S = 30.0
AT_ONCE = BackpressurePolicy(max_pending=0, max_wait_s=0.0)
_PACE_WEIGHT = 0.2
_log = logging.getLogger("firkin.engine")


def _stay() -> None:
    """Nobody waits in this name."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Room for `resources`; `take` reserves it, or raises `CapacityRejected`."""

    operation: str
    resources: SandboxResources
    take: Callable[[], Reservation]


@dataclass(slots=True, eq=False)
class Ticket:
    """A caller's way out of the line, for whoever waits in its name. Whoever sets `hurry` sends it away as well."""

    owner: str = ""
    hurry: asyncio.Event | None = None
    withdrawn: bool = False
    leave: Callable[[], None] = _stay

    def withdraw(self) -> None:
        self.withdrawn = True
        self.leave()


@dataclass(slots=True, eq=False)
class _Waiter:
    """`first_place` is its place when it came, from 1; `served_before` how many had been served in all by then."""

    take: Callable[[], Reservation]
    short: CapacityRejected
    owner: str
    came_s: float
    deadline_s: float
    first_place: int = 1
    served_before: int = 0
    given: asyncio.Future[Reservation] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class WaitingLine:
    def __init__(
        self,
        admission: Admission,
        spare: SpareRoom,
        *,
        clock: Clock,
        children: Children,
        policy: BackpressurePolicy,
    ) -> None:
        self.policy = policy
        self.pressed = False
        self._admission, self._spare = admission, spare
        self._clock, self._children = clock, children
        self._queues: OrderedDict[str, deque[_Waiter]] = OrderedDict()
        self._counts = Counter[RejectReason]()
        self._at_once = self._after_waiting = self._left = self._served = 0
        self._waited_ms = 0.0
        self._pace_s: float | None = None
        self._freed_at: float | None = None
        self._closed = self._serving = self._making_room = self._watched = False
        admission.when_freed = self._freed

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def reserve(self, resources: SandboxResources, operation: str) -> Reservation:
        """`Admission.reserve`, for those who know only the line."""
        return self._admission.reserve(resources, operation=operation)

    async def admitted(
        self, wish: Wish, ticket: Ticket | None = None, *, policy: BackpressurePolicy | None = None
    ) -> Reservation:
        """What the wish takes, now or after a bounded wait. `CapacityRejected` says why not.

        Returns without a suspension when there is room and nobody waits for any. `policy`
        takes the place of the line's own: `AT_ONCE` waits only for what is spare to go.
        """
        ticket, policy = ticket or Ticket(), policy or self.policy
        short = self._shortage(wish)
        if isinstance(short, Reservation):
            self._at_once += 1
            return short
        line = self._found()
        said = answer(short, line, policy)
        if isinstance(said, Reject) and said.reason is RejectReason.QUEUE_FULL and self._make_place(ticket.owner):
            said = Queue(position=line.waiting, deadline_s=line.now_s + policy.max_wait_s)
        if isinstance(said, Queue):
            return await self._wait(wish, short, ticket, said.deadline_s)
        reason = said.reason if isinstance(said, Reject) else RejectReason.NO_ROOM
        raise self._refused(short, Refusal(reason=reason, retry_after_s=self._retry(line.waiting + 1)))

    def _found(self) -> Line:
        return Line(
            now_s=self._clock.monotonic(),
            waiting=len(self),
            spare=self._spare.ready(),
            pressed=self.pressed,
            closed=self._closed,
        )

    def close(self) -> None:
        """Nobody waits any longer, and nobody else may."""
        self._closed = True
        for waiter in self._all():
            self._turn_away(waiter, RejectReason.SHUTTING_DOWN)

    def status(self) -> LineStatus:
        return LineStatus(
            waiting=len(self),
            max_pending=self.policy.max_pending,
            max_wait_s=self.policy.max_wait_s,
            admitted_at_once=self._at_once,
            admitted_after_waiting=self._after_waiting,
            left=self._left,
            rejected=dict(self._counts),
            waited_ms=self._waited_ms,
        )

    def _shortage(self, wish: Wish) -> Reservation | CapacityRejected:
        """Those who came earlier are served first; a newcomer is short of what they are short of."""
        too_large = self._admission.oversize(wish.resources, wish.operation)
        if too_large is not None:
            return too_large
        self._serve()
        head = self._head()
        return _tried(wish.take) if head is None else head.short

    async def _wait(self, wish: Wish, short: CapacityRejected, ticket: Ticket, deadline_s: float) -> Reservation:
        waiter = _Waiter(wish.take, short, ticket.owner, self._clock.monotonic(), deadline_s)
        self._queues.setdefault(ticket.owner, deque()).append(waiter)
        waiter.first_place, waiter.served_before = self._turns_until(waiter), self._served
        ticket.leave = lambda: self._turn_away(waiter, RejectReason.NO_ROOM)
        hurried = None if ticket.hurry is None else self._children.start(_leave_on(ticket.hurry, ticket), name="hurry")
        if ticket.withdrawn:
            ticket.leave()
        self._look_after()
        try:
            reservation = await waiter.given
        except asyncio.CancelledError:
            self._walked_away(waiter)
            raise
        finally:
            ticket.leave = _stay
            if hurried is not None:
                hurried.cancel()
        self._after_waiting += 1
        self._waited_ms = (self._clock.monotonic() - waiter.came_s) * 1000
        return reservation

    def _walked_away(self, waiter: _Waiter) -> None:
        self._left += 1
        self._remove(waiter)
        given = waiter.given
        if given.done() and not given.cancelled() and given.exception() is None:
            given.result().release()
        self._serve()

    def _serve(self) -> None:
        """Give room to those whose turn it is, until somebody's does not fit."""
        if self._serving:
            return
        self._serving = True
        try:
            while (head := self._head()) is not None:
                outcome = _tried(head.take)
                if isinstance(outcome, CapacityRejected):
                    head.short = outcome
                    self._make_room()
                    return
                self._remove(head, served=True)
                self._served += 1
                if head.given.done():  # cancelled in this very moment
                    outcome.release()
                else:
                    head.given.set_result(outcome)
        finally:
            self._serving = False

    def _make_room(self) -> None:
        if not self._making_room and self._spare.ready() > 0:
            self._making_room = True
            self._children.start(self._give_up_spare(), name="spare for active work")

    async def _give_up_spare(self) -> None:
        """Warm entries go first, as many as there are people waiting, until that is of no more use."""
        try:
            while len(self) and self._spare.ready():
                async with asyncio.timeout(GIVE_UP_WITHIN_S):
                    gone = await self._spare.give_up(len(self), because="active work needs the room")
                self._admission.look_again()
                self._serve()
                if not gone:
                    return
        except (FirkinError, TimeoutError) as error:  # those who wait have deadlines of their own
            _log.error("spare was not given up error=%s", error or f"no end within {GIVE_UP_WITHIN_S:g} s")
        finally:
            self._making_room = False

    def _freed(self) -> None:
        if self._serving:
            return
        now = self._clock.monotonic()
        if self._freed_at is not None and self._queues:
            since = now - self._freed_at
            self._pace_s = since if self._pace_s is None else self._pace_s + _PACE_WEIGHT * (since - self._pace_s)
        self._freed_at = now
        self._serve()
        if not self._queues:
            self._spare.room_freed()

    def _look_after(self) -> None:
        self._serve()
        if self._queues and not self._watched:
            self._watched = True
            self._children.start(self._watch(), name="waiting line")

    async def _watch(self) -> None:
        """For as long as somebody waits: deadlines, and room that nobody gave back, such as memory of the host."""
        try:
            while self._queues:
                now = self._clock.monotonic()
                next_s = min(now + LOOK_EVERY_S, *(waiter.deadline_s for waiter in self._all()))
                await self._clock.sleep_until(next_s)
                self._serve()
                for waiter in self._all():
                    if waiter.deadline_s <= self._clock.monotonic():
                        self._turn_away(waiter, RejectReason.DEADLINE_PASSED)
        finally:
            self._watched = False

    def _make_place(self, owner: str) -> bool:
        """A full line is shared: whoever holds the most places gives up its last to one who holds fewer."""
        if not self._queues:
            return False
        greedy = max(self._queues, key=lambda each: len(self._queues[each]))
        if len(self._queues[greedy]) <= len(self._queues.get(owner, ())) + 1:
            return False
        self._turn_away(self._queues[greedy][-1], RejectReason.QUEUE_FULL)
        return True

    def _turn_away(self, waiter: _Waiter, reason: RejectReason) -> None:
        if waiter.given.done():
            return
        now = self._clock.monotonic()
        position = max(1, waiter.first_place - (self._served - waiter.served_before))
        self._remove(waiter)
        refusal = Refusal(
            reason=reason,
            position=position,
            waited_s=now - waiter.came_s,
            retry_after_s=self._retry(position),
        )
        waiter.given.set_exception(self._refused(waiter.short, refusal))

    def _refused(self, short: CapacityRejected, refusal: Refusal) -> CapacityRejected:
        self._counts[refusal.reason] += 1
        return short.because(refusal)

    def _retry(self, position: int) -> float:
        return retry_after_s(position, self._pace_s, self.policy.max_wait_s)

    def _head(self) -> _Waiter | None:
        return next((queue[0] for queue in self._queues.values()), None)

    def _all(self) -> list[_Waiter]:
        return [waiter for queue in self._queues.values() for waiter in queue]

    def _turns_until(self, waiter: _Waiter) -> int:
        """Its own included, with tenants served by turns."""
        own = self._queues[waiter.owner]
        index = own.index(waiter)
        ahead, seen = index, False
        for owner, queue in self._queues.items():
            if owner == waiter.owner:
                seen = True
            else:
                ahead += min(len(queue), index if seen else index + 1)
        return ahead + 1

    def _remove(self, waiter: _Waiter, *, served: bool = False) -> None:
        queue = self._queues.get(waiter.owner)
        if queue is None or waiter not in queue:
            return
        queue.remove(waiter)
        if not queue:
            del self._queues[waiter.owner]
        elif served:
            self._queues.move_to_end(waiter.owner)


def _tried(take: Callable[[], Reservation]) -> Reservation | CapacityRejected:
    try:
        return take()
    except CapacityRejected as short:
        return short


async def _leave_on(hurry: asyncio.Event, ticket: Ticket) -> None:
    await hurry.wait()
    ticket.withdraw()
