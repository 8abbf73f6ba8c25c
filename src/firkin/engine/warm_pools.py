"""The warm pools as they are: which there should be, and what waits in each.

Nothing here waits for anything but the database, so taking an entry is one step
that nobody can come between. Making and ending entries is `refills`, handing them
out is `leases`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from firkin.engine.clock import Clock
from firkin.engine.records import Records
from firkin.engine.roster import Resident
from firkin.engine.stored_forms import decode_hook, legible, read_row, written
from firkin.law.errors import DeadlineExceeded, InvalidSpec
from firkin.law.ids import TemplateId, WarmPoolKey
from firkin.law.sandboxes import FromTemplate, SandboxSpec
from firkin.law.warm_pool import WarmEvictionPolicy, WarmPoolEntry, WarmPoolSpec
from firkin.lifetimes import finish

_FACT = "warm pools"
_KEPT_WITHIN_S = 30.0
_stored = msgspec.json.Decoder(dict[str, msgspec.Raw])
_all_specs = msgspec.json.Decoder(dict[str, WarmPoolSpec], dec_hook=decode_hook)
_specs = msgspec.json.Decoder(WarmPoolSpec, dec_hook=decode_hook)
_log = logging.getLogger("firkin.engine")


@dataclass(slots=True, eq=False, kw_only=True)
class Pool:
    """`shelf` holds what is ready, the one that has waited longest first. `due_at` is when it may be filled again.

    `short_of_room`: what it waits for is room. `probing` are off the shelf until it is seen whether they still answer.
    """

    template_id: TemplateId
    spec: WarmPoolSpec
    shelf: deque[Resident] = field(default_factory=deque)
    making: int = 0
    probing: int = 0
    hits: int = 0
    misses: int = 0
    failures: int = 0
    failure: str = ""
    short_of_room: bool = False
    due_at: float = 0.0
    landed: asyncio.Event = field(default_factory=asyncio.Event)

    def land(self) -> None:
        """One that was being made is no more: wake all who wait for that."""
        self.making -= 1
        self.wake()

    def suspect(self) -> list[Resident]:
        """Take all off the shelf to be probed; `probed` is called for each."""
        suspects = list(self.shelf)
        self.shelf.clear()
        self.probing += len(suspects)
        return suspects

    def probed(self) -> None:
        """One that was being probed is on the shelf again, or has ended."""
        self.probing -= 1
        self.wake()

    def wake(self) -> None:
        """All who wait for an entry look again."""
        event, self.landed = self.landed, asyncio.Event()
        event.set()

    @property
    def entry_spec(self) -> SandboxSpec:
        """What each entry is made by."""
        source = FromTemplate(self.template_id)
        return SandboxSpec(source=source, network=self.spec.network, isolation=self.spec.isolation)

    @property
    def lack(self) -> int:
        """How many entries are to be made."""
        return max(0, self.spec.depth - len(self.shelf) - self.making - self.probing)

    @property
    def surplus(self) -> int:
        return max(0, len(self.shelf) - self.spec.depth)

    def take(self, fits: Callable[[Resident], bool]) -> Resident | None:
        """Of those that fit, the one that has waited longest; it is off the shelf then."""
        found = next((one for one in self.shelf if fits(one)), None)
        if found is not None:
            self.shelf.remove(found)
        return found

    def pick(self, count: int) -> list[Resident]:
        """Take up to `count` off the shelf, in the order in which they have to go."""
        oldest = self.spec.eviction is WarmEvictionPolicy.OLDEST
        return [self.shelf.popleft() if oldest else self.shelf.pop() for _ in range(min(count, len(self.shelf)))]


class WarmPools:
    """`held` is why nothing is made now; empty while pools are filled. `changed` wakes whoever fills them."""

    def __init__(self, records: Records, clock: Clock) -> None:
        self._records = records
        self._clock = clock
        self._pools: dict[str, Pool] = {}
        self._setting = asyncio.Lock()
        self._busy = 0
        self._attended = Counter[str]()
        self.quiet_since = clock.monotonic()
        self.held = ""
        self.changed = asyncio.Event()

    async def load(self) -> None:
        """Take up the pools of an earlier server. One that cannot be read is dropped and told of."""
        text = await self._records.fact(_FACT)
        pools = read_row("facts", _FACT, lambda: _stored.decode(text or "{}"))
        for template_id, stored in pools.items():
            try:
                self._pools[template_id] = Pool(template_id=TemplateId(template_id), spec=_specs.decode(stored))
            except (msgspec.DecodeError, InvalidSpec) as error:
                _log.error("warm pool dropped, set it again template=%s error=%s", template_id, error)

    async def set(self, specs: Mapping[TemplateId, WarmPoolSpec]) -> list[Pool]:
        """Have these from now on; a depth of 0 is none. Returns the pools, with what has to go still in them.

        All pools are one record, so those who set some take turns. What was begun is not left half done: a caller
        who goes away meanwhile has set them.
        """
        async with self._setting:
            try:
                return await finish(self._set(specs), within_s=_KEPT_WITHIN_S)
            except TimeoutError:
                raise DeadlineExceeded("set warm pools", _KEPT_WITHIN_S) from None

    async def _set(self, specs: Mapping[TemplateId, WarmPoolSpec]) -> list[Pool]:
        kept = {name: pool.spec for name, pool in self._pools.items()} | {
            str(name): spec for name, spec in specs.items()
        }
        kept = {name: spec for name, spec in kept.items() if spec.depth}
        text = written("set warm pools", kept)
        await self._records.put_fact(_FACT, legible(text, _all_specs.decode))
        touched = [self._changed(template_id, spec) for template_id, spec in specs.items()]
        self.changed.set()
        return touched

    def _changed(self, template_id: TemplateId, spec: WarmPoolSpec) -> Pool:
        pool = self._pools.get(template_id) or Pool(template_id=template_id, spec=spec)
        pool.spec, pool.failures, pool.failure, pool.short_of_room, pool.due_at = spec, 0, "", False, 0.0
        if spec.depth:
            self._pools[template_id] = pool
        else:
            self._pools.pop(template_id, None)
        pool.wake()
        return pool

    def get(self, template_id: str | None) -> Pool | None:
        return None if template_id is None else self._pools.get(template_id)

    def shelve(self, resident: Resident) -> bool:
        """Put it where it is wanted; False where it is not, and then it has to go."""
        pool = self.get(resident.info.template_id)
        if pool is None or len(pool.shelf) >= pool.spec.depth:
            return False
        if pool.shelf and pool.shelf[-1].info.created_at > resident.info.created_at:  # taken up after a restart
            pool.shelf = deque(sorted([*pool.shelf, resident], key=lambda one: one.info.created_at))
        else:
            pool.shelf.append(resident)
        return True

    def drop(self, resident: Resident) -> None:
        """It is not to be handed out any more."""
        pool = self.get(resident.info.template_id)
        if pool is not None and resident in pool.shelf:
            pool.shelf.remove(resident)
            self.changed.set()

    def ready(self) -> int:
        return sum(len(pool.shelf) for pool in self)

    def wanted(self) -> int:
        return sum(pool.spec.depth for pool in self)

    def status(self) -> tuple[WarmPoolEntry, ...]:
        return tuple(
            WarmPoolEntry(
                key=WarmPoolKey(pool.template_id),
                ready=len(pool.shelf),
                total=len(pool.shelf) + pool.making + pool.probing,
                spec=pool.spec,
                hits=pool.hits,
                misses=pool.misses,
                held=self.held if pool.lack else "",
                failure=pool.failure,
                oldest_at=min((one.info.created_at for one in pool.shelf), default=None),
            )
            for pool in self
        )

    @contextmanager
    def attending(self, template_ids: Iterable[TemplateId]) -> Iterator[None]:
        """Somebody brings these to their size and waits for it: they are left to him meanwhile."""
        ids = list(map(str, template_ids))
        self._attended.update(ids)
        try:
            yield
        finally:
            self._attended.subtract(ids)
            self._attended += Counter()  # without those that nobody attends to
            self.changed.set()

    def is_attended(self, pool: Pool) -> bool:
        return self._attended[pool.template_id] > 0

    @contextmanager
    def serving(self) -> Iterator[None]:
        """A caller waits for a sandbox meanwhile: what is made ahead of need can wait."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self.quiet_since = self._clock.monotonic()

    @property
    def is_serving(self) -> bool:
        return self._busy > 0

    def __iter__(self) -> Iterator[Pool]:
        return iter(tuple(self._pools.values()))
