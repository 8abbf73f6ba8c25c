"""At every start: what should exist against what does. Adopt or end, never guess."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from firkin.engine import endings
from firkin.engine.admission import Kind
from firkin.engine.begun_ends import BegunEnd
from firkin.engine.leases import give_up
from firkin.engine.ledger import Why
from firkin.engine.networks import put_in_force
from firkin.engine.node import Node
from firkin.engine.pauses import is_going_down, lay_down
from firkin.engine.records import SandboxRecord
from firkin.engine.roster import Resident
from firkin.engine.substrate import substrate
from firkin.engine.watching import watch
from firkin.law.driver import Instance
from firkin.law.errors import FirkinError, UnsupportedCapability
from firkin.law.sandboxes import PauseMode
from firkin.law.states import Act, EndCause, SandboxState, allows

ADOPT_WITHIN_S = 15.0
SWEEP_WITHIN_S = 120.0
AT_ONCE = 16
_LIVE = (SandboxState.POOLED, SandboxState.RUNNING, SandboxState.PAUSED, SandboxState.STOPPING)
_HOST_BOOT = "host boot"
_STOP = BegunEnd(end=EndCause.REQUESTED, actor="engine", detail="a stop that the last server began", removes=False)
_log = logging.getLogger("firkin.engine")


async def reconcile(node: Node) -> None:
    """Take up every recorded sandbox that lives, end the others with their cause, remove what nobody owns."""
    standing = await node.records.standing()
    residents = [_settle(node, record) for record in standing]
    snapshots = [record.origin for record in await node.records.snapshots()]
    await node.templates.load([*snapshots, *(resident.origin for resident in residents)])
    for resident in residents:
        pooled = resident.info.state is SandboxState.POOLED
        resident.template = node.templates.hold(resident.origin, pinned_by=None if pooled else resident.info.owner)
    await node.snapshots.load()
    await node.volumes.load()
    await node.warm.load()
    gone = EndCause.HOST_RESTARTED if await _host_restarted(node) else EndCause.LOST
    gate = asyncio.Semaphore(AT_ONCE)
    node.records.begun.keep_only({resident.id for resident in residents})
    await asyncio.gather(*(_take_up(node, resident, gate, gone) for resident in residents))
    await _sweep(node)
    await asyncio.gather(*(_forget_interrupted(node, resident) for resident in residents))


async def _host_restarted(node: Node) -> bool:
    """Whether the machine was booted since the last server ran here."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            now = file.read().strip()
    except OSError:
        return False
    before = await node.records.fact(_HOST_BOOT)
    if before != now:
        await node.records.put_fact(_HOST_BOOT, now)
    return before is not None and before != now


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
    info = record.info
    if info.isolation is None:  # of a Firkin with one tier
        info = replace(info, isolation=node.tiers.isolation_of(info.driver))
    resident = Resident(info=info, origin=record.origin, ref=record.ref)
    node.roster.add(resident)
    return resident


async def _take_up(node: Node, resident: Resident, gate: asyncio.Semaphore, gone: EndCause) -> None:
    state = resident.info.state
    if state in _LIVE:
        begun = node.records.begun.left(resident.id) or (_STOP if state is SandboxState.STOPPING else None)
        async with gate:
            instance = await _adopted(node, resident)
            if begun is not None:
                await _go_on_ending(node, resident, instance, begun)
            elif instance is not None:
                await _keep(node, resident, instance)
            elif not await _files_alone(node, resident, gone):
                await _lost(node, resident, Why.ended(gone, actor="engine"))
    if node.roster.get(resident.id) is resident and resident.info.deadline_at is not None:
        left_s = (resident.info.deadline_at - node.clock.now()).total_seconds()
        node.deadlines.arm(resident.id, max(0.0, left_s))


async def _files_alone(node: Node, resident: Resident, gone: EndCause) -> bool:
    """Whether nothing runs but the files are to be kept: paused so, on the way there, or paused with a lost memory."""
    if resident.info.state is not SandboxState.PAUSED and not is_going_down(resident.info):
        return False
    try:
        kept = await _halted(node, resident)
    except FirkinError as error:
        _log.error("not halted sandbox=%s error=%s", resident.id, error)
        return True  # nobody knows what is there: it must not be swept away
    if kept:
        await lay_down(node, resident, gone)
    return kept


async def _halted(node: Node, resident: Resident) -> bool:
    async with substrate("halt", resident.info.driver, within_s=ADOPT_WITHIN_S, sandbox_id=resident.id):
        return await node.driver.halt(resident.id)


async def _adopted(node: Node, resident: Resident) -> Instance | None:
    if resident.ref is None or not node.tiers.knows(resident.ref.driver):
        return None
    if resident.info.state is SandboxState.PAUSED and resident.info.pause_mode is PauseMode.FILESYSTEM:
        return None  # whatever runs there was booted by a resume that nobody has seen the end of
    try:
        async with substrate("adopt", resident.info.driver, within_s=ADOPT_WITHIN_S, sandbox_id=resident.id):
            return await node.driver.adopt(resident.id, resident.ref)
    except FirkinError as error:
        _log.error("not adopted sandbox=%s error=%s", resident.id, error)
        return None


async def _keep(node: Node, resident: Resident, instance: Instance) -> None:
    """It lives: count it and watch it."""
    resident.instance = instance
    with suppress(FirkinError):  # told in its log; it reaches nothing then
        await put_in_force(node, resident, instance, resident.info.network)
    await _hold(node, resident, instance)
    await _lead(node, resident)
    node.background(watch(node, resident, instance), name=f"watch {resident.id}")
    if resident.info.state is SandboxState.POOLED:
        await _shelve(node, resident, instance)


async def _go_on_ending(node: Node, resident: Resident, instance: Instance | None, begun: BegunEnd) -> None:
    """What the last server began to end is ended for the cause that it had, whether it still lives or not."""
    why = Why.ended(begun.end, actor=begun.actor, detail=begun.detail)
    resident.instance = instance
    try:
        async with resident.turn("finish an end"):
            kept = instance is not None or await _halted(node, resident)
            if begun.removes:
                await endings.delete(node, resident, why, force=True)
            elif kept:
                await endings.kill(node, resident, why)
            else:
                await _lost(node, resident, why)
    except FirkinError as error:
        _log.error("not ended sandbox=%s error=%s", resident.id, error)
        if allows(resident.info.state, Act.FAIL):
            await _lost(node, resident, why)


async def _shelve(node: Node, resident: Resident, instance: Instance) -> None:
    """Back to its pool, with the limits of its record: the last server may have ended while it handed it out."""
    try:
        async with substrate("adopt", resident.info.driver, within_s=ADOPT_WITHIN_S, sandbox_id=resident.id):
            with suppress(UnsupportedCapability):
                await instance.resize(resident.info.resources)
    except FirkinError as error:
        give_up(node, resident, str(error))
        return
    if not node.warm.shelve(resident):
        give_up(node, resident, "no pool wants it any more")


async def _lead(node: Node, resident: Resident) -> None:
    """Its gateway went with the last server. Until there is another it reaches nothing, which is logged."""
    try:
        await node.egress.lead("adopt", resident)
    except FirkinError as error:
        _log.error("not led to an egress gateway sandbox=%s error=%s", resident.id, error)
        return
    if resident.to_trust and resident.info.state is SandboxState.RUNNING:
        node.background(_settle_trust(node, resident), name=f"trust {resident.id}")


async def _settle_trust(node: Node, resident: Resident) -> None:
    try:
        await node.egress.settle(resident, await node.links.connect(resident))
    except FirkinError as error:
        _log.error("egress authority not trusted sandbox=%s error=%s", resident.id, error)


async def _hold(node: Node, resident: Resident, instance: Instance) -> None:
    """Frozen or running as the record says: the last server may have ended between the two."""
    frozen = resident.info.state is SandboxState.PAUSED
    try:
        async with substrate("adopt", resident.info.driver, within_s=ADOPT_WITHIN_S, sandbox_id=resident.id):
            await (instance.freeze() if frozen else instance.thaw())
    except FirkinError as error:
        _log.error("not brought to its state sandbox=%s error=%s", resident.id, error)
    resources = resident.info.resources
    kind = Kind.WARM if resident.info.state is SandboxState.POOLED else Kind.ACTIVE
    resident.reservation = node.admission.hold_memory(resources) if frozen else node.admission.hold(resources, kind)
    if is_going_down(resident.info):
        resident.info = replace(resident.info, pause_mode=None)
        await node.ledger.save(resident)


async def _lost(node: Node, resident: Resident, why: Why) -> None:
    """It is gone, or cannot be found again; the sweep removes what is left of it."""
    resident.ref = None
    pooled = resident.info.state is SandboxState.POOLED
    await node.ledger.note(resident, Act.FAIL, why=why)
    if why.end is not None:
        node.figures.ended[why.end] += 1
    if pooled and why.end is not None:
        await endings.forget(node, resident, why.end)


async def _sweep(node: Node) -> None:
    """Everything of ours that belongs to no sandbox that lives or keeps its files."""
    keep = [one.id for one in node.roster if one.info.state in (*_LIVE, SandboxState.STOPPED)]
    async with substrate("sweep", node.driver.name, within_s=SWEEP_WITHIN_S):
        for removed in await node.driver.sweep(keep):
            _log.warning("removed leftover=%s", removed)


async def _forget_interrupted(node: Node, resident: Resident) -> None:
    """A create that the last server did not finish: the sweep took back what there was."""
    if resident.info.state is SandboxState.CREATING:
        why = Why.ended(EndCause.CREATE_FAILED, actor="engine", detail="the server ended while it was made")
        await node.ledger.note(resident, Act.FAIL, Act.DELETE, why=why)
        endings.leave(node, resident)
