"""Making a sandbox: every step, and every step's undoing.

Admit, record, boot, reach the agent, record again, answer. The first record is
durable before the driver is asked, so that whatever dies in between is found by
its label at the next start. A failure or a cancelled caller undoes all of it.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from contextlib import suppress
from dataclasses import replace
from functools import partial

from firkin.engine.admission import Kind, Reservation
from firkin.engine.foundations import Foundation, fitting, on_snapshot, on_template
from firkin.engine.leases import leased, pool_for
from firkin.engine.ledger import Why
from firkin.engine.links import Inside
from firkin.engine.node import Node
from firkin.engine.orders import Order, could_become, deadline_at
from firkin.engine.roster import Resident
from firkin.engine.sandbox_requests import check_sandbox, deadline_after
from firkin.engine.startups import Surroundings, start_up
from firkin.engine.substrate import substrate
from firkin.engine.waiting_line import Ticket, Wish
from firkin.engine.warm_pools import Pool
from firkin.engine.watching import watch
from firkin.host.fittings import REHEARSAL
from firkin.law.backend import TierStatus
from firkin.law.capabilities import CapabilityName
from firkin.law.driver import BootPlan
from firkin.law.errors import (
    AlreadyExists,
    BackendFailure,
    CapacityRejected,
    FirkinError,
    ResourceKind,
    RetryClass,
    SnapshotIntegrityFailure,
    TemplatePrepareFailure,
)
from firkin.law.ids import SandboxId, SnapshotId, fresh_sandbox_id
from firkin.law.logs import LogSource
from firkin.law.processes import Argv, Command
from firkin.law.sandboxes import FromSnapshot, FromTemplate, SandboxInfo, SandboxSpec
from firkin.law.snapshots import SnapshotKind
from firkin.law.states import Act, EndCause, SandboxState
from firkin.lifetimes import children, finish
from firkin.phases import mark

BOOT_WITHIN_S = 60.0
COPY_WITHIN_S = 600.0
UNDO_WITHIN_S = 90.0
READY_WITHIN_S = 60.0  # of a template that was ready when it was built; somebody waits
_REHEARSAL_WITHIN_S = 10.0
_SHELL = Argv("/bin/bash", ("--noprofile", "--norc", "-c", REHEARSAL))
_CREATE = "create a sandbox"


async def create(node: Node, spec: SandboxSpec, *, sandbox_id: SandboxId | None = None) -> SandboxInfo:
    """See `SandboxControl.create`."""
    if spec.volumes:
        node.volumes.require(_CREATE)
    if isinstance(spec.source, FromSnapshot):
        return await _create_from(node, spec, spec.source.snapshot_id, sandbox_id)
    return await create_on(node, spec, *await _on_template(node, spec, spec.source))


async def create_spare(node: Node, spec: SandboxSpec) -> Resident:
    """A sandbox for a warm pool: it is nobody's, and waits."""
    resident = await _made(node, await spare_order(node, spec))
    await _rehearse(node, resident)
    return resident


async def spare_order(node: Node, spec: SandboxSpec) -> Order:
    """What `create_spare` makes today. Fails as it does."""
    assert isinstance(spec.source, FromTemplate)
    foundation, tier = await _on_template(node, spec, spec.source)
    resources = fitting(foundation, None, node.policies.default_resources)
    return Order(spec, foundation, tier, resources, None, pooled=True)


async def _rehearse(node: Node, resident: Resident) -> None:
    """Have it start a shell once, so that its agent has done that before and its kernel knows where a shell lies."""
    with suppress(FirkinError, TimeoutError):  # an image without bash, or an end that is found out elsewhere
        inside = await node.links.connect(resident)
        await inside.processes.run(Command(mode=_SHELL, timeout_s=_REHEARSAL_WITHIN_S), rehearsal=True)


async def checked_out(node: Node, spec: SandboxSpec) -> SandboxInfo | None:
    """As `create`, from what waits in the template's warm pool alone; None where nothing does."""
    assert isinstance(spec.source, FromTemplate)
    order = await _ordered(node, spec, *await _on_template(node, spec, spec.source), None)
    with node.warm.serving():
        return await _from_pool(node, order)


async def _on_template(node: Node, spec: SandboxSpec, source: FromTemplate) -> tuple[Foundation, TierStatus]:
    wish = spec.isolation or node.templates.ready(_CREATE, source.template_id).info.isolation
    tier = await node.tiers.choose(_CREATE, wish)
    check_sandbox(spec, tier)
    return on_template(_CREATE, node.templates.ready(_CREATE, source.template_id)), tier


async def _create_from(
    node: Node, spec: SandboxSpec, snapshot_id: SnapshotId, sandbox_id: SandboxId | None
) -> SandboxInfo:
    if not node.snapshots.holds(snapshot_id):
        node.offer.require(_CREATE, CapabilityName.SNAPSHOT_RESTORE)
    with node.snapshots.borrowed(_CREATE, snapshot_id) as (record, captured):
        tier = await node.tiers.restoring(_CREATE, record.info.driver, spec.isolation)
        check_sandbox(spec, tier)
        async with substrate(_CREATE, record.info.driver, within_s=COPY_WITHIN_S):
            await node.snapshots.require_whole(_CREATE, snapshot_id)
        foundation = on_snapshot(_CREATE, record, str(captured))
        return await create_on(node, spec, foundation, tier, sandbox_id=sandbox_id)


async def create_on(
    node: Node, spec: SandboxSpec, foundation: Foundation, tier: TierStatus, *, sandbox_id: SandboxId | None = None
) -> SandboxInfo:
    """As `create`, from what a sandbox is made on. The files of `foundation` must stay until this returns."""
    order = await _ordered(node, spec, foundation, tier, sandbox_id)
    with node.warm.serving():
        if taken := await _from_pool(node, order):
            return taken
        missing = await _missing(node, order)
        made = (await _made(node, order)).info
        if missing is not None:
            missing.misses += 1
        return made


async def _ordered(
    node: Node, spec: SandboxSpec, foundation: Foundation, tier: TierStatus, sandbox_id: SandboxId | None
) -> Order:
    lifetime_s = deadline_after(spec.deadline, node.policies.deadlines, node.clock.now())
    continues = bool(foundation.captured) and tier.captures is SnapshotKind.CONTINUATION
    resources = fitting(foundation, spec.resources, node.policies.default_resources, continues=continues)
    await node.egress.check(_CREATE, spec.owner, spec.network)
    return Order(spec, foundation, tier, resources, lifetime_s, sandbox_id)


async def _from_pool(node: Node, order: Order) -> SandboxInfo | None:
    began = node.clock.monotonic()
    resident = await leased(node, order)
    if resident is None:
        return None
    _settle_in(node, order, resident, (node.clock.monotonic() - began) * 1000)
    return resident.info


async def _missing(node: Node, order: Order) -> Pool | None:
    """The pool that should have had it: of its template, on its tier, with its size of disk."""
    pool = pool_for(node, order)
    if pool is None:
        return None
    try:
        spare = await spare_order(node, pool.entry_spec)
    except FirkinError:  # what cannot be made at all is missed by nobody
        return None
    return pool if could_become(spare, order) else None


async def _made(node: Node, order: Order) -> Resident:
    resident = await _admit(node, order)
    mark("admit")
    began = node.clock.monotonic()
    async with resident.lock:
        try:
            await _bring_up(node, order, resident)
        except BaseException as failure:
            node.figures.create_failed += 1
            await finish(_undo(node, resident, failure), within_s=UNDO_WITHIN_S)
            raise
    assert resident.instance is not None
    node.background(watch(node, resident, resident.instance), name=f"watch {resident.id}")
    if not order.pooled:
        _settle_in(node, order, resident, (node.clock.monotonic() - began) * 1000)
    return resident


async def _admit(node: Node, order: Order) -> Resident:
    """Room, a name and a place on the roster. With room there, all at once; whoever had to wait is checked again."""
    _check_free(node, order)
    owner = None if order.pooled else order.spec.owner
    template = node.templates.hold(order.foundation.origin, pinned_by=owner)  # stays while room is waited for
    reservation = None
    try:
        reservation = await _room(node, order)
        _check_free(node, order)  # and on the roster in the same step
        sandbox_id = order.sandbox_id or _named(node, order)
        resident = Resident(
            info=order.info(sandbox_id, node.clock.now()),
            origin=order.foundation.origin,
            reservation=reservation,
            template=template,
        )
    except BaseException as failure:
        node.figures.refused += isinstance(failure, CapacityRejected)
        template.release()
        if reservation is not None:
            reservation.release()
        raise
    node.roster.add(resident)
    return resident


def _named(node: Node, order: Order) -> SandboxId:
    """A fresh name, if possible one under which the driver has made much of it already."""
    prepared = None
    if _repeats(order):
        prepared = node.tiers.prepared(order.tier, order.foundation.root, order.resources)
    return prepared or fresh_sandbox_id()


def _repeats(order: Order) -> bool:
    return not order.foundation.captured and not order.pooled


async def _room(node: Node, order: Order) -> Reservation:
    """At once or after a wait. What is made ahead of need waits for nothing, and not before those who do."""
    if not order.pooled:
        wish = Wish(_CREATE, order.resources, lambda: node.admission.reserve(order.resources))
        return await node.line.admitted(wish, Ticket(order.spec.owner))
    if len(node.line):
        raise CapacityRejected(_CREATE, "room beside those who wait for some", requested=1, available=0)
    return node.admission.reserve(order.resources, Kind.WARM)


def _check_free(node: Node, order: Order) -> None:
    if order.sandbox_id is not None and order.sandbox_id in node.roster:
        raise AlreadyExists(_CREATE, ResourceKind.SANDBOX, order.sandbox_id)
    node.volumes.wanted(_CREATE, order.spec.owner, order.spec.volumes)


async def _bring_up(node: Node, order: Order, resident: Resident) -> None:
    plan = await _recorded_and_booted(node, order, resident)
    assert resident.instance is not None
    resident.ref = resident.instance.ref
    await node.egress.lead(_CREATE, resident)
    inside = await node.links.connect(resident)
    mark("link")
    await node.egress.settle(resident, inside)
    mark("egress")
    await inside.introduce()
    if not (plan.captured and order.tier.captures is SnapshotKind.CONTINUATION):  # else it goes on
        await started_up(_CREATE, inside, resident)
    mark("start-up")
    now = node.clock.now()
    resident.info = replace(resident.info, started_at=now, deadline_at=deadline_at(now, order.lifetime_s))
    act = Act.POOL if order.pooled else Act.READY
    await node.ledger.move(resident, act, why=Why(cause="its agent answered", actor="engine"))
    mark("record ready")


async def _recorded_and_booted(node: Node, order: Order, resident: Resident) -> BootPlan:
    """Both at once: whatever a driver has under a name without a record is swept away by the next server.

    One that takes the place of another with its files is recorded first.
    """
    async with children() as beside:
        recording = beside.start(_recorded(node, order, resident), name=f"record {resident.id}")
        if order.sandbox_id is not None:
            await recording
        try:
            plan = await _booted(node, order, resident)
        except BaseException:
            await finish(asyncio.wait([recording]), within_s=UNDO_WITHIN_S)  # an end comes after a beginning
            raise
        mark("boot")
        await recording
        mark("record")
        return plan


async def _recorded(node: Node, order: Order, resident: Resident) -> None:
    try:
        await node.ledger.open(resident, anew=order.sandbox_id is not None)
    except sqlite3.IntegrityError as error:
        raise BackendFailure(_CREATE, "the engine", "the new id was taken", retry=RetryClass.RETRYABLE) from error


async def _booted(node: Node, order: Order, resident: Resident) -> BootPlan:
    """The plan that it was booted by. What was started for all is made again where it is of no use any more."""
    for again in (True, False):
        started = ""
        if not order.spec.hardened:  # what runs already could gain privileges
            started = await node.started.captured(order.foundation, order.resources, order.tier)
        plan = _boot_plan(node, order, resident, started)
        within_s = COPY_WITHIN_S if plan.captured else BOOT_WITHIN_S
        try:
            async with (
                node.launches.turn(_CREATE, order.spec.owner, background=order.pooled),
                substrate(_CREATE, order.tier.driver, within_s=within_s, sandbox_id=resident.id),
            ):
                resident.instance = await node.driver.boot(plan)
        except SnapshotIntegrityFailure:
            if not (started and again):
                raise
            await node.started.forget(started)  # another version of the tier made it, or it is damaged
        else:
            return plan
    raise AssertionError("the loop returns or raises")


async def started_up(operation: str, inside: Inside, resident: Resident) -> None:
    """Run what its template wants to run in each of its sandboxes. `BackendFailure` when that fails.

    With the template's environment: one out of a warm pool has run it before anybody's was known.
    """
    info, origin = resident.info, resident.origin
    if not origin.startup:
        return
    around = Surroundings(user=info.default_user, workdir=info.default_workdir, env=inside.own_env)
    startup = replace(origin.startup, ready_within_s=min(READY_WITHIN_S, origin.startup.ready_within_s))
    try:
        await start_up(inside, startup, around)
    except TemplatePrepareFailure as failure:
        raise BackendFailure(operation, f"template {info.template_id}", str(failure)) from failure


def _boot_plan(node: Node, order: Order, resident: Resident, started: str) -> BootPlan:
    return BootPlan(
        sandbox_id=resident.id,
        root=order.foundation.root,
        resources=resident.info.resources,
        network=order.spec.network,
        hostname=str(resident.id),
        machine_id=secrets.token_hex(16),
        hardened=order.spec.hardened,
        captured=order.foundation.captured or started,
        isolation=order.tier.isolation or "",
        repeats=_repeats(order),
        leaves=partial(node.links.leaves, resident),
        volumes=node.volumes.wanted(_CREATE, resident.info.owner, resident.info.volumes),
    )


def _settle_in(node: Node, order: Order, resident: Resident, took_ms: float) -> None:
    """What a sandbox that lives gets without waiting. Nothing here can fail."""
    node.deadlines.arm(resident.id, order.lifetime_s)
    node.figures.created += 1
    node.figures.create_ms = took_ms
    node.logs.write(resident.id, LogSource.BOOT, f"running after {took_ms:.1f} ms")


async def _undo(node: Node, resident: Resident, failure: BaseException) -> None:
    """Take back every step in reverse. What cannot be taken back stays visible as FAILED."""
    reason = _reason(failure)
    why = Why.ended(EndCause.CREATE_FAILED, actor="engine", detail=reason)
    await node.links.drop(resident)
    try:
        async with substrate("undo a create", resident.info.driver, within_s=UNDO_WITHIN_S / 2, sandbox_id=resident.id):
            if resident.instance is not None:
                await resident.instance.destroy()
            await node.driver.discard(resident.id)
    except FirkinError as error:
        stuck = Why.ended(
            EndCause.CREATE_FAILED, actor="engine", detail=f"{reason}; and it could not be undone: {error}"
        )
        await node.ledger.note(resident, Act.FAIL, why=stuck)
        return
    resident.instance = resident.ref = None
    resident.release()
    lived = resident.info.state in (SandboxState.RUNNING, SandboxState.POOLED)  # the last record failed after that
    try:
        await node.ledger.note(resident, Act.KILL if lived else Act.FAIL, Act.DELETE, why=why)
    finally:
        _forget(node, resident)


def _forget(node: Node, resident: Resident) -> None:
    node.figures.ended[EndCause.CREATE_FAILED] += 1
    node.roster.remove(resident)
    node.logs.retire(resident.id)
    if resident.template is not None:
        resident.template.release()


def _reason(failure: BaseException) -> str:
    if isinstance(failure, asyncio.CancelledError):
        return "the caller went away"
    return str(failure) if isinstance(failure, FirkinError) else f"{type(failure).__name__}: {failure}"
