"""Handing out what waits in a warm pool: the oldest that still lives becomes the sandbox that was asked for.

All that makes it the caller's own is pushed at this moment: environment, metadata,
owner, deadline, network policy, limits. Its id, host name, clock and randomness it
has had since it was made, and nobody else ever had them.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial

from firkin.engine import endings
from firkin.engine.ledger import Why
from firkin.engine.networks import put_in_force
from firkin.engine.node import Node
from firkin.engine.orders import Order, deadline_at
from firkin.engine.roster import Resident
from firkin.engine.substrate import substrate
from firkin.engine.warm_pools import Pool
from firkin.law.errors import CapacityRejected, FirkinError, SandboxUnavailable, UnsupportedCapability
from firkin.law.states import Act, EndCause, SandboxState
from firkin.phases import mark

LEASE_WITHIN_S = 15.0
ANSWER_WITHIN_S = 1.0  # a caller waits; an agent answers within a few milliseconds, on a host that is not swamped
SUSPECT_WITHIN_S = 5.0  # nobody waits, and a burst that swamps the host must not cost those that are sound
PROBED_AT_ONCE = 32
_LEASE = "take a sandbox from the warm pool"
_log = logging.getLogger("firkin.engine")


class _KeepsItsLimits(Exception):
    """Its tier cannot change them: the next entry's would not change either."""


class _Silent(Exception):
    """Its agent does not answer. What stopped it may have stopped the others, too."""


async def leased(node: Node, order: Order) -> Resident | None:
    """An entry that has become what was ordered; None where no pool could serve it, or none had one that lives."""
    pool = pool_for(node, order)
    if pool is None:
        return None
    try:
        resident = await _first_that_fits(node, order, pool)
    finally:
        node.warm.changed.set()
    pool.hits += resident is not None
    return resident


async def _first_that_fits(node: Node, order: Order, pool: Pool) -> Resident | None:
    while (resident := pool.take(partial(_can_become, node, order))) is not None:
        try:
            if not _is_fresh(order, resident):
                give_up(node, resident, "its template is another by now")
            elif await _became(node, order, resident):
                return resident
        except _KeepsItsLimits:  # nothing was changed
            _put_back(node, resident)
            return None
        except _Silent:  # the caller waits for no other that hangs: it gets a new one
            _call_the_roll(node, pool, resident)
            return None
    return None


def _put_back(node: Node, resident: Resident) -> None:
    if not node.warm.shelve(resident):
        give_up(node, resident, "the pool became smaller")


def _call_the_roll(node: Node, pool: Pool, silent: Resident) -> None:
    """See behind the caller's back which of all that wait still answer. The others are ended."""
    pool.shelf.appendleft(silent)
    gate = asyncio.Semaphore(PROBED_AT_ONCE)
    for one in pool.suspect():
        node.acts.start(_probed(node, pool, one, gate), name=f"probe {one.id}")


async def _probed(node: Node, pool: Pool, resident: Resident, gate: asyncio.Semaphore) -> None:
    try:
        async with gate:
            if await _answers(node, resident):
                _put_back(node, resident)
            else:
                _log.warning("warm entry silent sandbox=%s", resident.id)
                await end_entry(node, resident, "it waited in a warm pool", EndCause.AGENT_SILENT)
    finally:
        pool.probed()
        node.warm.changed.set()


async def _answers(node: Node, resident: Resident) -> bool:
    try:
        async with resident.turn("probe a warm sandbox"):
            async with asyncio.timeout(SUSPECT_WITHIN_S):
                await node.links.ping(resident)
    except (FirkinError, TimeoutError):
        return False
    return resident.info.state is SandboxState.POOLED  # else it ended meanwhile


def give_up(node: Node, resident: Resident, detail: str, cause: EndCause = EndCause.REQUESTED) -> None:
    """End an entry that is on no shelf any more, behind the back of whoever found it."""
    node.acts.start(end_entry(node, resident, detail, cause), name=f"end warm {resident.id}")


async def end_entry(node: Node, resident: Resident, detail: str, cause: EndCause = EndCause.REQUESTED) -> None:
    """Nothing is left of it, nor a record that anybody could list; its journal says why it went."""
    why = Why.ended(cause, actor="engine", detail=detail)
    try:
        async with resident.turn("end a warm sandbox"):
            if node.roster.get(resident.id) is resident:
                await endings.delete(node, resident, why, force=True)
    except FirkinError as error:
        _log.error("warm entry not ended sandbox=%s error=%s", resident.id, error)


def pool_for(node: Node, order: Order) -> Pool | None:
    """The pool of its template, if it is of a kind that pools serve at all: none has files that were captured."""
    foundation, spec = order.foundation, order.spec
    if foundation.captured or order.sandbox_id or order.pooled or spec.hardened or spec.volumes:
        return None
    return node.warm.get(foundation.template_id)


def _can_become(node: Node, order: Order, resident: Resident) -> bool:
    """Of its kind, and with room for what it would have more: one that was begun and refused would be lost."""
    info, room = resident.info, resident.reservation
    of_its_kind = (info.driver, info.resources.disk_bytes) == (order.tier.driver, order.resources.disk_bytes)
    return of_its_kind and (room is None or node.admission.could_grow(room, order.resources))


def _is_fresh(order: Order, resident: Resident) -> bool:
    info, foundation = resident.info, order.foundation
    return (
        resident.origin == foundation.origin
        and info.state is SandboxState.POOLED
        and (info.default_user, info.default_workdir) == (foundation.default_user, foundation.default_workdir)
    )


async def _became(node: Node, order: Order, resident: Resident) -> bool:
    """Whether it is the caller's now. One that could not be made so is ended: it may have been changed in part."""
    try:
        async with resident.turn(_LEASE):
            await _ping(node, resident)
            mark("ping")
            await _resize(order, resident)
            await _dress(node, order, resident)
    except (_KeepsItsLimits, _Silent):
        raise
    except BaseException as failure:
        gone = isinstance(failure, asyncio.CancelledError)
        why = "whoever asked for it went away" if gone else str(failure) or type(failure).__name__
        detail = f"it could not be handed out: {why}"
        give_up(node, resident, detail, _cause_of(failure))
        if not isinstance(failure, FirkinError):
            raise
        _log.warning("not handed out sandbox=%s error=%s", resident.id, failure)
        return False
    return True


async def _ping(node: Node, resident: Resident) -> None:
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            await node.links.ping(resident)
    except TimeoutError as silent:
        raise _Silent from silent


def _cause_of(failure: BaseException) -> EndCause:
    """Of one that was not handed out. It is sound where its caller went away or asked for more than there is."""
    if isinstance(failure, SandboxUnavailable):
        return EndCause.AGENT_SILENT
    sound = not isinstance(failure, FirkinError) or isinstance(failure, CapacityRejected)
    return EndCause.REQUESTED if sound else EndCause.DRIVER_FAILED


async def _resize(order: Order, resident: Resident) -> None:
    before = resident.info
    if order.resources != before.resources and resident.instance is not None:
        try:
            async with substrate(_LEASE, before.driver, within_s=LEASE_WITHIN_S, sandbox_id=resident.id):
                await resident.instance.resize(order.resources)
        except UnsupportedCapability as kept:
            raise _KeepsItsLimits from kept


async def _dress(node: Node, order: Order, resident: Resident) -> None:
    instance, before, room = resident.instance, resident.info, resident.reservation
    if instance is None or room is None or before.state is not SandboxState.POOLED:
        raise SandboxUnavailable(_LEASE, resident.id, "it has ended")
    if order.spec.network != before.network:
        await put_in_force(node, resident, instance, order.spec.network)
    mark("limits and policy")
    now = node.clock.now()
    info = replace(order.info(resident.id, now), started_at=now, deadline_at=deadline_at(now, order.lifetime_s))
    resident.info = replace(info, state=before.state)
    await node.egress.lead(_LEASE, resident)
    inside = await node.links.acquaint(resident)
    await inside.introduce()
    await node.egress.settle(resident, inside)
    mark("egress")
    node.admission.promote(room, order.resources)
    _pin(node, resident)
    await node.ledger.move(resident, Act.LEASE, why=Why(cause="taken from the warm pool"))
    mark("record leased")


def _pin(node: Node, resident: Resident) -> None:
    """From now on its template cannot be deleted."""
    before, resident.template = resident.template, node.templates.hold(resident.origin, pinned_by=resident.info.owner)
    if before is not None:
        before.release()
