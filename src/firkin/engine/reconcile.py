"""At every start: what should exist against what does. Adopt or end, never guess."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from firkin.engine import endings
from firkin.engine.ledger import Why
from firkin.engine.node import Node
from firkin.engine.records import SandboxRecord
from firkin.engine.roster import Resident
from firkin.engine.substrate import substrate
from firkin.engine.watching import watch
from firkin.law.driver import Instance
from firkin.law.errors import FirkinError
from firkin.law.states import Act, EndCause, SandboxState

ADOPT_WITHIN_S = 15.0
SWEEP_WITHIN_S = 120.0
AT_ONCE = 16
_log = logging.getLogger("firkin.engine")


async def reconcile(node: Node) -> None:
    """Take up every recorded sandbox that lives, end the others with their cause, remove what nobody owns."""
    standing = await node.records.standing()
    residents = [_settle(node, record) for record in standing]
    await node.templates.load([resident.origin.directory for resident in residents])
    for resident in residents:
        resident.template = node.templates.hold(resident.origin.directory)
    gate = asyncio.Semaphore(AT_ONCE)
    await asyncio.gather(*(_take_up(node, resident, gate) for resident in residents))
    await _sweep(node)
    await asyncio.gather(*(_forget_interrupted(node, resident) for resident in residents))


async def forget_ended(node: Node) -> None:
    """Forget ends that are older than the operator wants to be asked about; again every hour."""
    while True:
        before = node.clock.now() - timedelta(seconds=node.policies.hygiene.ended_kept_s)
        try:
            await node.records.forget_ended(before)
        except FirkinError as error:
            _log.error("forgetting failed error=%s", error)
        await node.clock.sleep_until(node.clock.monotonic() + 3600.0)


def _settle(node: Node, record: SandboxRecord) -> Resident:
    resident = Resident(info=record.info, origin=record.origin, ref=record.ref)
    node.roster.add(resident)
    return resident


async def _take_up(node: Node, resident: Resident, gate: asyncio.Semaphore) -> None:
    state = resident.info.state
    if state in (SandboxState.RUNNING, SandboxState.PAUSED, SandboxState.STOPPING):
        async with gate:
            instance = await _adopted(node, resident)
        if instance is None:
            await _lost(node, resident)
        else:
            await _keep(node, resident, instance)
    if node.roster.get(resident.id) is resident and resident.info.deadline_at is not None:
        left_s = (resident.info.deadline_at - node.clock.now()).total_seconds()
        node.deadlines.arm(resident.id, max(0.0, left_s))


async def _adopted(node: Node, resident: Resident) -> Instance | None:
    if resident.ref is None or resident.ref.driver != node.driver.name:
        return None
    try:
        async with substrate("adopt", node.driver.name, within_s=ADOPT_WITHIN_S, sandbox_id=resident.id):
            return await node.driver.adopt(resident.id, resident.ref)
    except FirkinError as error:
        _log.error("not adopted sandbox=%s error=%s", resident.id, error)
        return None


async def _keep(node: Node, resident: Resident, instance: Instance) -> None:
    """It lives: count it, watch it, and end a stop that was under way."""
    resident.instance = instance
    resident.reservation = node.admission.hold(resident.info.resources)
    node.background(watch(node, resident, instance), name=f"watch {resident.id}")
    if resident.info.state is not SandboxState.STOPPING:
        return
    async with resident.turn("finish stopping"):
        try:
            await endings.destroy(node, resident)
        except FirkinError as error:
            _log.error("not stopped sandbox=%s error=%s", resident.id, error)
            return
        why = Why.ended(EndCause.REQUESTED, actor="engine", detail="a stop that the last server began")
        await node.ledger.note(resident, Act.STOPPED, why=why)


async def _lost(node: Node, resident: Resident) -> None:
    """It is gone, or cannot be found again; the sweep removes what is left of it."""
    resident.ref = None
    node.figures.ended[EndCause.LOST] += 1
    await node.ledger.note(resident, Act.FAIL, why=Why.ended(EndCause.LOST, actor="engine"))


async def _sweep(node: Node) -> None:
    """Everything of ours that belongs to no sandbox that lives or keeps its files."""
    kept = (SandboxState.RUNNING, SandboxState.PAUSED, SandboxState.STOPPING, SandboxState.STOPPED)
    keep = [resident.id for resident in node.roster if resident.info.state in kept]
    async with substrate("sweep", node.driver.name, within_s=SWEEP_WITHIN_S):
        for removed in await node.driver.sweep(keep):
            _log.warning("removed leftover=%s", removed)


async def _forget_interrupted(node: Node, resident: Resident) -> None:
    """A create that the last server did not finish: the sweep took back what there was."""
    if resident.info.state is SandboxState.CREATING:
        why = Why.ended(EndCause.CREATE_FAILED, actor="engine", detail="the server ended while it was made")
        await node.ledger.note(resident, Act.FAIL, Act.DELETE, why=why)
        endings.leave(node, resident)
