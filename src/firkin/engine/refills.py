"""Keeping warm pools at their size: making what is missing, ending what is too much, too old or too many.

What cannot be made is tried again later and later, and the pool says why it is
short. When all this is done without anybody's asking is `tending`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace

from firkin.engine import creation
from firkin.engine.builds import TagMoved
from firkin.engine.leases import end_entry
from firkin.engine.node import Node
from firkin.engine.orders import Order
from firkin.engine.roster import Resident
from firkin.engine.warm_pools import Pool
from firkin.law.errors import CapacityRejected, FirkinError
from firkin.law.events import WarmPoolChanged
from firkin.law.ids import WarmPoolKey
from firkin.law.sandboxes import SandboxInfo

EVICTED_DUE_S = 5.0
AT_ONCE = 2
_FIRST_PAUSE_S, _MOST_PAUSE_S = 1.0, 60.0
_GONE = "the pool became smaller"
_OTHER = "its pool has others by now"
_log = logging.getLogger("firkin.engine")


async def fill(node: Node, pools: Iterable[Pool]) -> tuple[int, list[str]]:
    """Bring these to their size at once: how many were made, and why not all, a sentence for each pool."""
    made = await asyncio.gather(*(_fill_one(node, pool) for pool in pools))
    return sum(count for count, _ in made), [failure for _, failure in made if failure]


async def evict(node: Node, entries: Iterable[Resident], because: str) -> int:
    """End what was taken off its shelf; how many there were."""
    chosen = list(entries)
    await asyncio.gather(*(node.acts.run(end_entry(node, one, because), name=f"evict {one.id}") for one in chosen))
    return len(chosen)


async def trim(node: Node, pool: Pool) -> int:
    """End what is more than the pool's size, or is not what would be made for it today."""
    stale = _taken_off(pool, lambda one: not _is_of_today(node, one))
    count = await evict(node, stale, "its template is another by now")
    order = await _order_of_today(node, pool)
    others = [] if order is None else _taken_off(pool, lambda one: not _is_as_ordered(order, one.info))
    count += await evict(node, others, _OTHER)
    return count + await evict(node, pool.pick(pool.surplus), _GONE)


async def follow(node: Node, moved: TagMoved) -> None:
    """A name means another template now: its pool goes with it, with what it has counted.

    Where there is a pool already, that stays.
    """
    pool = node.warm.get(moved.before)
    if pool is None or (pool.spec.follows != moved.name if pool.spec.follows else not moved.left):
        return
    there = node.warm.get(moved.after)
    none = replace(pool.spec, depth=0, min_ready=0)
    arrived, gone = await node.warm.set({moved.after: there.spec if there else pool.spec, moved.before: none})
    arrived.hits += gone.hits
    arrived.misses += gone.misses
    for changed in (arrived, gone):
        await trim(node, changed)


class WarmSpare:
    """The pools as a `Spare`: what is above a pool's least goes first, then the rest; work that runs never does."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def ready(self) -> int:
        return self._node.warm.ready()

    def wanted(self) -> int:
        return self._node.warm.wanted()

    def memory_bytes(self) -> int:
        """Not known: what was promised to them is many times what they take."""
        return 0

    async def give_up(self, count: int, *, because: str) -> int:
        chosen: list[Resident] = []
        for spared in (True, False):
            for pool in self._node.warm:
                over = len(pool.shelf) - (pool.spec.min_ready if spared else 0)
                chosen += pool.pick(max(0, min(over, count - len(chosen))))
        return await evict(self._node, chosen, because)

    def room_freed(self) -> None:
        short = [pool for pool in self._node.warm if pool.short_of_room]
        for pool in short:
            pool.due_at = 0.0
        if short:
            self._node.warm.changed.set()

    def hold(self, because: str) -> None:
        self._node.warm.held = because

    def resume(self) -> None:
        self._node.warm.held = ""
        for pool in self._node.warm:  # what was put off for want of room need not wait
            pool.due_at, pool.failures = 0.0, 0
        self._node.warm.changed.set()


async def _fill_one(node: Node, pool: Pool) -> tuple[int, str]:
    """Also waits for what others make for it, as long as it is wanted."""
    made = 0
    while len(pool.shelf) < pool.spec.depth and not pool.failure:
        if some := _some_more(node, pool):
            made += sum(await asyncio.gather(*some))
        else:
            await pool.landed.wait()
    return made, f"pool {pool.template_id}: {pool.failure}" if pool.failure else ""


def _some_more(node: Node, pool: Pool) -> list[Coroutine[None, None, bool]]:
    return [made_one(node, pool) for _ in range(min(AT_ONCE, pool.lack))]


def made_one(node: Node, pool: Pool) -> Coroutine[None, None, bool]:
    """Whether there is one more in it. Counted at once, so that nobody else begins it as well; and it goes on to its
    end, whoever walks away."""
    pool.making += 1
    return node.acts.run(_one_more(node, pool), name=f"fill pool {pool.template_id}")


async def _one_more(node: Node, pool: Pool) -> bool:
    try:
        made_by = pool.entry_spec
        resident = await creation.create_spare(node, made_by)
        if pool.failures:  # whatever put it off is over
            pool.failures, pool.failure, pool.short_of_room, pool.due_at = 0, "", False, 0.0
            node.warm.changed.set()
        if pool.entry_spec != made_by or not node.warm.shelve(resident):  # it is not wanted any more
            await end_entry(node, resident, _GONE if pool.entry_spec == made_by else _OTHER)
            return False
    except FirkinError as error:
        _put_off(node, pool, error)
        return False
    finally:
        pool.land()
    node.events.publish(WarmPoolChanged(WarmPoolKey(pool.template_id)))
    return True


def _put_off(node: Node, pool: Pool, why: FirkinError) -> None:
    pool.failures += 1
    pool.failure = str(why)
    pool.short_of_room = isinstance(why, CapacityRejected)
    pool.due_at = node.clock.monotonic() + min(_MOST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(pool.failures - 1, 10))
    node.warm.changed.set()  # the next look is when it is due
    _log.warning("pool short template=%s error=%s", pool.template_id, why)


def _is_of_today(node: Node, resident: Resident) -> bool:
    record = node.templates.of_directory(resident.origin.directory)
    return record is not None and record.info.id == resident.info.template_id


def _taken_off(pool: Pool, goes: Callable[[Resident], bool]) -> list[Resident]:
    going = [one for one in pool.shelf if goes(one)]
    for one in going:
        pool.shelf.remove(one)
    return going


async def _order_of_today(node: Node, pool: Pool) -> Order | None:
    """None while nothing can be made: then what there is, is the best that can be had."""
    try:
        return await creation.spare_order(node, pool.entry_spec)
    except FirkinError:
        return None


def _is_as_ordered(order: Order, info: SandboxInfo) -> bool:
    asked = (order.tier.driver, order.resources, order.spec.network)
    return (info.driver, info.resources, info.network) == asked
