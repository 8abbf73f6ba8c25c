"""Handing out what waits in a warm pool: the oldest that still lives becomes the sandbox that was asked for.

All that makes it the caller's own is pushed at this moment: environment, metadata,
owner, deadline, network policy, limits. Its id, host name, clock and randomness it
has had since it was made, and nobody else ever had them.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from firkin.engine import endings
from firkin.engine.ledger import Why
from firkin.engine.links import environment
from firkin.engine.networks import put_in_force
from firkin.engine.node import Node
from firkin.engine.orders import Order, deadline_at
from firkin.engine.roster import Resident
from firkin.engine.substrate import substrate
from firkin.engine.warm_pools import Pool
from firkin.law.errors import FirkinError, SandboxUnavailable, UnsupportedCapability
from firkin.law.states import Act, EndCause, SandboxState
from firkin.phases import mark

LEASE_WITHIN_S = 15.0
_LEASE = "take a sandbox from the warm pool"
_log = logging.getLogger("firkin.engine")


class _KeepsItsLimits(Exception):
    """Its tier cannot change them: the next entry's would not change either."""


async def leased(node: Node, order: Order) -> Resident | None:
    """An entry that has become what was ordered; None where no pool could serve it, or none had one that lives."""
    pool = _serving(node, order)
    if pool is None:
        return None
    try:
        resident = await _first_that_fits(node, order, pool)
    finally:
        node.warm.changed.set()
    pool.hits += resident is not None
    pool.misses += resident is None
    return resident


async def _first_that_fits(node: Node, order: Order, pool: Pool) -> Resident | None:
    while pool.shelf:
        resident = pool.shelf.popleft()
        try:
            if not _is_fresh(order, resident):
                give_up(node, resident, "its template is another by now")
            elif await _became(node, order, resident):
                return resident
        except _KeepsItsLimits:  # nothing was changed
            pool.shelf.appendleft(resident)
            return None
    return None


def give_up(node: Node, resident: Resident, detail: str) -> None:
    """End an entry that is on no shelf any more, behind the back of whoever found it."""
    node.acts.start(end_entry(node, resident, detail), name=f"end warm {resident.id}")


async def end_entry(node: Node, resident: Resident, detail: str) -> None:
    """Nothing is left of it, nor a record that anybody could list; its journal says why it went."""
    why = Why.ended(EndCause.REQUESTED, actor="engine", detail=detail)
    try:
        async with resident.turn("end a warm sandbox"):
            if node.roster.get(resident.id) is resident:
                await endings.delete(node, resident, why, force=True)
    except FirkinError as error:
        _log.error("warm entry not ended sandbox=%s error=%s", resident.id, error)


def _serving(node: Node, order: Order) -> Pool | None:
    """The pool of its template, if what waits there can become it."""
    foundation, spec = order.foundation, order.spec
    pool = node.warm.get(foundation.template_id)
    if pool is None or foundation.snapshot_id or order.sandbox_id or order.pooled or spec.hardened or spec.volumes:
        return None
    first = pool.shelf[0].info if pool.shelf else None
    if first is not None and (
        first.driver != order.tier.driver or first.resources.disk_bytes != order.resources.disk_bytes
    ):
        return None
    return pool


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
            await node.links.ping(resident)
            mark("ping")
            await _resize(order, resident)
            await _dress(node, order, resident)
    except _KeepsItsLimits:
        raise
    except BaseException as failure:
        give_up(node, resident, f"it could not be handed out: {failure or type(failure).__name__}")
        if not isinstance(failure, FirkinError):
            raise
        _log.warning("not handed out sandbox=%s error=%s", resident.id, failure)
        return False
    return True


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
    inside = await node.links.connect(resident)
    resident.inside = inside = replace(inside, env=environment(resident))
    await node.egress.settle(resident, inside)
    mark("egress")
    node.admission.promote(room, order.resources)
    _pin(node, resident)
    await node.ledger.move(resident, Act.LEASE, why=Why(cause="taken from the warm pool"))
    mark("record leased")


def _pin(node: Node, resident: Resident) -> None:
    """From now on its template cannot be deleted."""
    before, resident.template = resident.template, node.templates.hold(resident.origin)
    if before is not None:
        before.release()
