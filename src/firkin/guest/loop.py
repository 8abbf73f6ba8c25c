"""One thread, one epoll: what is ready is called, what takes long is stepped.

A *job* is a generator: it yields True to go on in the next turn and False to
sleep until `Job.wake`. So a big read or a recursive removal lets others go on.
"""

from __future__ import annotations

import heapq
import select
from collections import deque
from contextlib import suppress
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Rest = Callable[[int, float], float]
    """Wait until that descriptor has an event, which stays to be had: so many seconds at most, for ever if negative.
    Returns as `SharedPages.rest`."""

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
_EVENTS_A_TURN = 64
_TICK_S = 1.0
_FROZEN_S = 1.0
IDLE_S = 0.25


class Timer:
    """Something to do later; `cancel` if it is no longer wanted."""

    __slots__ = ("_call", "at")

    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self._call: Callable[[], None] | None = call

    def __lt__(self, other: Timer) -> bool:
        return self.at < other.at

    def cancel(self) -> None:
        self._call = None

    def run(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()

    @property
    def wanted(self) -> bool:
        return self._call is not None


class Job:
    """A generator that the loop steps until it ends or is stopped."""

    __slots__ = ("_loop", "_queued", "_steps")

    def __init__(self, loop: Loop, steps: Iterator[bool]) -> None:
        self._loop = loop
        self._steps: Iterator[bool] | None = steps
        self._queued = False
        self.wake()

    def wake(self) -> None:
        if self._steps is not None and not self._queued:
            self._queued = True
            self._loop.enqueue(self)

    def stop(self) -> None:
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()  # type: ignore[attr-defined]  # always a generator

    def step(self) -> None:
        self._queued = False
        steps = self._steps
        if steps is None:
            return
        more = next(steps, None)
        if more is None:
            self._steps = None
        elif more:
            self.wake()


class Loop:
    """Calls back what is ready. A callback that raises loses its descriptor, never the agent.

    Its time stands still while the sandbox is frozen, which the kernel's monotonic
    clock does not: a turn that took much longer than its wait was asked to was a pause.
    Waits are cut into ticks, so that what a pause can cost a timer is at most a second.
    """

    __slots__ = (
        "_at_rest",
        "_callbacks",
        "_ends",
        "_epoll",
        "_frozen_s",
        "_interest",
        "_jobs",
        "_rest_at",
        "_timers",
        "_woke_at",
    )

    def __init__(self) -> None:
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._interest: dict[int, int] = {}
        self._timers: list[Timer] = []
        self._jobs: deque[Job] = deque()
        self._ends: list[Callable[[], None]] = []
        self._at_rest: Rest | None = None
        self._rest_at = 0.0
        self._frozen_s = 0.0
        self._woke_at = monotonic()

    def begin(self) -> None:
        """Open the descriptor; nothing can be watched before."""
        self._epoll = select.epoll()
        self._woke_at = monotonic()

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback` while any of `events` holds; 0 is deaf, also to hang-ups."""
        known = self._interest.get(fd, 0)
        if events == known:
            if events:
                self._callbacks[fd] = callback
            return
        if not events:
            self.forget(fd)
            return
        if known:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._interest[fd] = events
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Must come before the descriptor is closed."""
        if self._interest.pop(fd, 0):
            del self._callbacks[fd]
            self._epoll.unregister(fd)

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        timer = Timer(self.now() + seconds, call)
        heapq.heappush(self._timers, timer)
        return timer

    def enqueue(self, job: Job) -> None:
        self._jobs.append(job)

    def at_end_of_turn(self, call: Callable[[], None]) -> None:
        self._ends.append(call)

    def at_rest(self, rest: Rest) -> None:
        """Wait by that as soon as nothing has been ready for a quarter of a second."""
        self._at_rest = rest
        self._rest_at = self._woke_at + IDLE_S

    def turn(self) -> None:
        """Wait for something, then do everything that is due, once."""
        for fd, events in self._wait():
            callback = self._callbacks.get(fd)
            if callback is not None:
                self._guarded(callback, events, fd)
        self._run_timers()
        for _ in range(len(self._jobs)):
            self._attempt(self._jobs.popleft().step)
        ends, self._ends = self._ends, []
        for end in ends:
            self._attempt(end)

    def now(self) -> float:
        """Seconds on a clock that stands still with the sandbox."""
        return monotonic() - self._frozen_s

    def _wait(self) -> list[tuple[int, int]]:
        due = self._due()
        if due and self._at_rest is not None and 0 < self._rest_at <= self._woke_at:
            patience = self._rested(self._at_rest, due)
            ready = self._epoll.poll(0, _EVENTS_A_TURN)
        else:
            patience = self._patience(due)
            ready = self._epoll.poll(patience, _EVENTS_A_TURN)
        before, self._woke_at = self._woke_at, monotonic()
        late = self._woke_at - before - patience
        if patience >= 0 and late > _FROZEN_S:
            self._frozen_s += late
        if ready and self._at_rest is not None:
            self._rest_at = self._woke_at + IDLE_S
        return ready

    def _rested(self, rest: Rest, due: float) -> float:
        """For how long, at most. A rest that fails is tried again only after something was ready."""
        self._rest_at = 0.0
        try:
            waited = rest(self._epoll.fileno(), due)
        except Exception:  # noqa: BLE001 — no memory for it, say: there is another way to wait
            return 0.0
        self._rest_at = monotonic() + IDLE_S
        return waited

    def _due(self) -> float:
        """In how many seconds there is something to do; negative: nothing is known of."""
        if self._jobs or self._ends:
            return 0
        timers = self._timers
        while timers and not timers[0].wanted:
            heapq.heappop(timers)
        return max(0.0, timers[0].at - self.now()) if timers else -1

    def _patience(self, due: float) -> float:
        most = IDLE_S if self._rest_at else _TICK_S
        return min(most, due) if due >= 0 else IDLE_S if self._rest_at else -1

    def _run_timers(self) -> None:
        timers = self._timers
        if not timers:
            return
        now = self._woke_at - self._frozen_s  # not later: a freeze during this turn shows in the next wait
        while timers and (timers[0].at <= now or not timers[0].wanted):
            self._attempt(heapq.heappop(timers).run)

    def _guarded(self, callback: Callable[[int], None], events: int, fd: int) -> None:
        try:
            callback(events)
        except Exception:  # noqa: BLE001 — PID 1 must not die; a descriptor that keeps failing would spin
            self.forget(fd)

    def _attempt(self, call: Callable[[], object]) -> None:
        with suppress(Exception):  # PID 1 must not die, and has nobody to tell
            call()
