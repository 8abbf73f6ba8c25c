"""What is made before anybody asks: parts of instances under names that are sandboxes' later, by kind.

Nothing on a shelf is anybody's. Each gets its name when it is made; whoever finds
none of the kind that he needs has all of it made while he waits.

How many are kept follows demand: as many as were last wanted at once, within bounds,
of the kinds that were asked for last. They are made one at a time, and none is begun while a
launch is under way: that would cost those who wait more than it gives the next ones.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from firkin.drivers.ground.helper_process import HelperDied
from firkin.law.errors import FirkinError
from firkin.law.ids import SandboxId, fresh_sandbox_id
from firkin.lifetimes import Children, finish

AFTER_S = 0.25  # whoever is gone again by then, after one command, has no use for any
_DEMAND_LASTS_S = 60.0
_LOOKS_EVERY_S = 15.0
_PROMISE_LASTS_S = 120.0
_LAST_STEPS_S = 0.01  # a caller is being answered
_FIRST_STEPS_S = 0.08  # and does something with what he got
_IN_A_ROW_S = 0.25  # launches that begin closer together want the next one sooner than quiet
_END_WITHIN_S = 30.0
_LEAST_PATIENCE_S, _MOST_PATIENCE_S = 0.1, 30.0
_FAILURES = (FirkinError, HelperDied, OSError, TimeoutError)
_log = logging.getLogger("firkin.drivers")

KindT = TypeVar("KindT", bound=Hashable)
KindT_co = TypeVar("KindT_co", bound=Hashable, covariant=True)


class Waiting(Protocol[KindT_co]):
    """One that waits. What is done to it is done from the shelf's event loop."""

    @property
    def sandbox_id(self) -> SandboxId: ...

    @property
    def kind(self) -> KindT_co: ...

    def watch(self, died: Callable[[], None]) -> None:
        """Say `died`, once, when it does while it waits."""
        ...

    def unwatch(self) -> None:
        """It waits no longer. Idempotent."""
        ...


ItemT = TypeVar("ItemT", bound=Waiting[Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Of each kind at least `least` and at most `most` are kept (0: none at all), of the last `kinds` asked for.

    None is made before `after_s`, nor in the `last_steps_s` after a launch that followed another closely. A kind that
    nobody has asked for in `unasked_s` is kept no longer.
    """

    least: int
    most: int
    kinds: int
    after_s: float = AFTER_S
    last_steps_s: float = _LAST_STEPS_S
    unasked_s: float = math.inf


@dataclass(frozen=True, slots=True, eq=False)
class _Making(Generic[KindT]):
    """The one that is being made, until `over`."""

    name: SandboxId
    kind: KindT
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class _Setback:
    """One of a kind could not be made: none of it is until then."""

    patience_s: float
    until: float


class Shelf(Generic[KindT, ItemT]):
    """Those of one driver. Use from one event loop; nothing is made before `start`.

    Kinds that are equal can stand in for each other. `has_room` says whether one of a
    kind may be kept now, for what the host has left; it is asked from time to time.
    """

    def __init__(
        self,
        make: Callable[[SandboxId, KindT], Awaitable[ItemT]],
        end: Callable[[ItemT], Coroutine[Any, Any, None]],
        bounds: Bounds,
        *,
        first: tuple[KindT, ...] = (),
        has_room: Callable[[KindT], bool] = lambda _kind: True,
    ) -> None:
        self._make = make
        self._end = end
        self._bounds = bounds
        self._has_room = has_room
        self._ready: dict[SandboxId, ItemT] = {}
        self._promised: dict[SandboxId, float] = {}
        self._making: _Making[KindT] | None = None
        self._ending: dict[SandboxId, asyncio.Event] = {}
        self._kinds: deque[KindT] = deque(first, maxlen=bounds.kinds)
        self._asked: dict[KindT, float] = {}
        self._setbacks: dict[KindT, _Setback] = {}
        self._started = False
        self._under_way = 0
        self._launched_at = -math.inf
        self._began_at = -math.inf
        self._in_a_row = False
        self._peak = 0
        self._peak_at = 0.0
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks = Children()

    @property
    def names(self) -> set[str]:
        """Of those that are no sandbox's."""
        return {*self._ready, *self._ending, *([self._making.name] if self._making else ())}

    def start(self) -> None:
        """Idempotent."""
        if self._bounds.most and not self._started:
            self._started = True
            self._asked.update(dict.fromkeys(self._kinds, _now()))
            self._tasks.start(self._keep(), name="what is made ahead")
        self._wanted.set()

    def promise(self, fits: Callable[[KindT], bool]) -> SandboxId | None:
        """The name of one of such a kind, for one boot. It is for nobody else until that, or `end`, or a while."""
        for name, item in self._ready.items():
            if name not in self._promised and fits(item.kind):
                self._promised[name] = _now()
                return name
        return None

    def promise_unfinished(self, fits: Callable[[KindT], bool]) -> SandboxId | None:
        """As `promise`, the one that is being made: whoever takes it waits for the rest of that, and no longer."""
        making = self._making
        if making is None or making.name in self._promised or not fits(making.kind):
            return None
        self._promised[making.name] = _now()
        return making.name

    async def take(self, sandbox_id: SandboxId) -> ItemT | None:
        """The one of that name, which is the caller's from now on. None: nothing of that name is left, either."""
        making = self._making
        if making is not None and making.name == sandbox_id and sandbox_id in self._promised:
            # Only where it was promised: whoever makes it may end it on the way, and must not wait for himself.
            try:
                await making.over.wait()
            except BaseException:  # whoever wanted it has gone
                await finish(self.end(sandbox_id), within_s=_END_WITHIN_S)
                raise
        while (ending := self._ending.get(sandbox_id)) is not None:
            await ending.wait()
        return self._off(sandbox_id)

    async def end(self, sandbox_id: SandboxId) -> None:
        """The one of that name is not wanted. Idempotent."""
        item = await self.take(sandbox_id)
        if item is None:
            return
        self._ending[sandbox_id] = asyncio.Event()
        try:
            await finish(self._end(item), within_s=_END_WITHIN_S)
        finally:
            self._ending.pop(sandbox_id).set()
            self._wanted.set()

    def _off(self, sandbox_id: SandboxId) -> ItemT | None:
        item = self._ready.pop(sandbox_id, None)
        self._promised.pop(sandbox_id, None)
        if item is not None:
            item.unwatch()
        return item

    @contextmanager
    def launching(self, kind: KindT) -> Iterator[None]:
        """Around each boot that one of these could have served, whether it did or not.

        One that fails is not asked for: what can never be made must push nothing out.
        """
        self._under_way += 1
        self._idle.clear()
        self._in_a_row = _now() - self._began_at < _IN_A_ROW_S
        self._began_at = _now()
        if self._under_way >= self._peak or _now() - self._peak_at > _DEMAND_LASTS_S:
            self._peak, self._peak_at = self._under_way, _now()
        try:
            yield
            self._was_asked_for(kind)
        finally:
            self._under_way -= 1
            self._launched_at = _now()
            if not self._under_way:
                self._idle.set()
            self._wanted.set()

    def _was_asked_for(self, kind: KindT) -> None:
        if kind in self._kinds:
            self._kinds.remove(kind)
        self._kinds.append(kind)  # the one asked for last is the last that gives way
        self._asked = {**{known: at for known, at in self._asked.items() if known in self._kinds}, kind: _now()}

    async def aclose(self) -> None:
        await self._tasks.aclose()
        await asyncio.gather(*map(self.end, list(self._ready)))

    async def _keep(self) -> None:
        await asyncio.sleep(self._bounds.after_s)
        while True:
            self._wanted.clear()
            await self._calm()
            with _told("what is not wanted was not ended"):
                await self._end_the_unwanted()
            while (kind := self._missing()) is not None:
                await self._make_one(kind)
                await self._calm()
            try:
                async with asyncio.timeout(self._looks_in_s()):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    def _looks_in_s(self) -> float | None:
        """Until something may be different although nobody says so."""
        retries = [max(0.0, setback.until - _now()) for setback in self._setbacks.values()]
        return min([*retries, *([_LOOKS_EVERY_S] if self._ready else [])], default=None)

    async def _calm(self) -> None:
        """Until no launch is under way, nor one's last steps, nor, while there is one for the next, what follows.

        Whoever launches one after the other would find none if each time was waited for what follows.
        """
        while self._under_way or self._launched_at + self._patience_s() > _now():
            await self._idle.wait()
            await asyncio.sleep(min(_LAST_STEPS_S, self._patience_s()))

    def _patience_s(self) -> float:
        if self._in_a_row:
            return self._bounds.last_steps_s
        ready = {item.kind for name, item in self._ready.items() if name not in self._promised}
        return _FIRST_STEPS_S if self._kinds and self._kinds[-1] in ready else _LAST_STEPS_S

    async def _make_one(self, kind: KindT) -> None:
        """Where that fails, others of the kind are made after a while that grows, and of other kinds meanwhile."""
        making = self._making = _Making(fresh_sandbox_id(), kind)
        name = making.name
        before = self._setbacks.pop(kind, None)
        try:
            item = await self._make(name, kind)
            self._ready[name] = item
            item.watch(lambda: self._died(name))
        except _FAILURES as error:
            patience_s = min(2 * before.patience_s, _MOST_PATIENCE_S) if before else _LEAST_PATIENCE_S
            self._setbacks[kind] = _Setback(patience_s, _now() + patience_s)
            _log.warning("nothing could be made ahead error=%s", error)
            self._promised.pop(name, None)
        finally:
            self._making = None
            making.over.set()

    def _died(self, sandbox_id: SandboxId) -> None:
        if sandbox_id in self._ready:
            self._ready[sandbox_id].unwatch()
            self._tasks.start(self._bury(sandbox_id), name=f"end what died waiting {sandbox_id}")

    async def _bury(self, sandbox_id: SandboxId) -> None:
        with _told("what died waiting was not removed"):
            await self.end(sandbox_id)

    def _missing(self) -> KindT | None:
        now = _now()
        later = {kind: back for kind, back in self._setbacks.items() if back.until > now and kind in self._kinds}
        for kind in reversed(self._kinds):
            there = sum(item.kind == kind for item in self._ready.values())
            if kind not in later and there < self._depth(kind):
                return kind
        self._setbacks = later
        return None

    def _depth(self, kind: KindT) -> int:
        if kind not in self._kinds or _now() - self._asked[kind] > self._bounds.unasked_s or not self._has_room(kind):
            return 0
        if _now() - self._peak_at > _DEMAND_LASTS_S:
            self._peak = 0
        return min(self._bounds.most, max(self._bounds.least, self._peak))

    async def _end_the_unwanted(self) -> None:
        """Those of a kind that nobody asks for any more, those above demand, and those that were never called for."""
        left = {kind: self._depth(kind) for kind in self._kinds}
        for name, item in list(self._ready.items()):
            if name in self._promised:
                if _now() - self._promised[name] > _PROMISE_LASTS_S:
                    await self.end(name)
            elif left.get(item.kind, 0) <= 0:
                await self.end(name)
            else:
                left[item.kind] -= 1


@contextmanager
def _told(failed: str) -> Iterator[None]:
    """What goes wrong behind the scenes is logged: nobody waits for it."""
    try:
        yield
    except _FAILURES as error:
        _log.warning("%s error=%s", failed, error)


def _now() -> float:
    return asyncio.get_running_loop().time()
