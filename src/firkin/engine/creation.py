"""Making a sandbox: every step, and every step's undoing.

Admit, record, boot, reach the agent, record again, answer. The first record is
durable before the driver is asked, so that whatever dies in between is found by
its label at the next start. A failure or a cancelled caller undoes all of it.
"""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from firkin.engine.foundations import Foundation, fitting, on_snapshot, on_template
from firkin.engine.identifiers import new_sandbox_id
from firkin.engine.ledger import Why
from firkin.engine.links import Inside
from firkin.engine.node import Node
from firkin.engine.roster import Resident
from firkin.engine.sandbox_requests import check_sandbox, deadline_after
from firkin.engine.startups import Surroundings, start_up
from firkin.engine.substrate import substrate
from firkin.engine.waiting_line import Ticket, Wish
from firkin.engine.watching import watch
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
from firkin.law.ids import SandboxId, SnapshotId
from firkin.law.logs import LogSource
from firkin.law.resources import SandboxResources
from firkin.law.sandboxes import FromSnapshot, SandboxInfo, SandboxSpec
from firkin.law.snapshots import SnapshotKind
from firkin.law.states import Act, EndCause, SandboxState
from firkin.lifetimes import finish

BOOT_WITHIN_S = 60.0
COPY_WITHIN_S = 600.0
UNDO_WITHIN_S = 90.0
READY_WITHIN_S = 60.0  # of a template that was ready when it was built; somebody waits
_CREATE = "create a sandbox"


@dataclass(frozen=True, slots=True)
class _Order:
    """A spec that has been found possible. `sandbox_id` None takes a fresh one."""

    spec: SandboxSpec
    foundation: Foundation
    tier: TierStatus
    resources: SandboxResources
    lifetime_s: float | None
    sandbox_id: SandboxId | None = None


async def create(node: Node, spec: SandboxSpec, *, sandbox_id: SandboxId | None = None) -> SandboxInfo:
    """See `SandboxControl.create`."""
    if spec.volumes:
        node.volumes.require(_CREATE)
    if isinstance(spec.source, FromSnapshot):
        return await _create_from(node, spec, spec.source.snapshot_id, sandbox_id)
    template_id = spec.source.template_id
    wish = spec.isolation or node.templates.ready(_CREATE, template_id).info.isolation
    tier = await node.tiers.choose(_CREATE, wish)
    check_sandbox(spec, tier)
    return await create_on(node, spec, on_template(_CREATE, node.templates.ready(_CREATE, template_id)), tier)


async def _create_from(
    node: Node, spec: SandboxSpec, snapshot_id: SnapshotId, sandbox_id: SandboxId | None
) -> SandboxInfo:
    if not node.snapshots.holds(snapshot_id):
        node.offer.require(_CREATE, CapabilityName.SNAPSHOT_RESTORE)
    with node.snapshots.borrowed(_CREATE, snapshot_id) as (record, captured):
        tier = await node.tiers.restoring(_CREATE, record.info.driver, spec.isolation)
        check_sandbox(spec, tier)
        foundation = on_snapshot(_CREATE, record, str(captured))
        return await create_on(node, spec, foundation, tier, sandbox_id=sandbox_id)


async def create_on(
    node: Node, spec: SandboxSpec, foundation: Foundation, tier: TierStatus, *, sandbox_id: SandboxId | None = None
) -> SandboxInfo:
    """As `create`, from what a sandbox is made on. The files of `foundation` must stay until this returns."""
    lifetime_s = deadline_after(spec.deadline, node.policies.deadlines, node.clock.now())
    continues = bool(foundation.captured) and tier.captures is SnapshotKind.CONTINUATION
    resources = fitting(foundation, spec.resources, node.policies.default_resources, continues=continues)
    await node.egress.check(_CREATE, spec.owner, spec.network)
    node.volumes.wanted(_CREATE, spec.owner, spec.volumes)  # and on the roster in the same step, without a wait
    order = _Order(spec, foundation, tier, resources, lifetime_s, sandbox_id)
    resident = await _admit(node, order)
    began = node.clock.monotonic()
    async with resident.lock:
        try:
            await _bring_up(node, order, resident)
        except BaseException as failure:
            node.figures.create_failed += 1
            await finish(_undo(node, resident, failure), within_s=UNDO_WITHIN_S)
            raise
    _settle_in(node, order, resident, (node.clock.monotonic() - began) * 1000)
    return resident.info


async def _admit(node: Node, order: _Order) -> Resident:
    """Room, a name and a place on the roster. With room there, all at once; whoever had to wait is checked again."""
    _check_free(node, order)
    wish = Wish(_CREATE, order.resources, lambda: node.admission.reserve(order.resources))
    template = node.templates.hold(order.foundation.origin)  # its files stay while room is waited for
    reservation = None
    try:
        reservation = await node.line.admitted(wish, Ticket(order.spec.owner))
        _check_free(node, order)
        node.volumes.wanted(_CREATE, order.spec.owner, order.spec.volumes)
        resident = Resident(
            info=_first_info(node, order), origin=order.foundation.origin, reservation=reservation, template=template
        )
    except BaseException as failure:
        node.figures.refused += isinstance(failure, CapacityRejected)
        template.release()
        if reservation is not None:
            reservation.release()
        raise
    node.roster.add(resident)
    return resident


def _check_free(node: Node, order: _Order) -> None:
    if order.sandbox_id is not None and order.sandbox_id in node.roster:
        raise AlreadyExists(_CREATE, ResourceKind.SANDBOX, order.sandbox_id)


def _first_info(node: Node, order: _Order) -> SandboxInfo:
    spec, foundation = order.spec, order.foundation
    return SandboxInfo(
        id=order.sandbox_id or new_sandbox_id(node.roster.__contains__),
        state=SandboxState.CREATING,
        created_at=node.clock.now(),
        resources=order.resources,
        template_id=foundation.template_id,
        snapshot_id=foundation.snapshot_id,
        env={**foundation.env, **spec.env},
        metadata=dict(spec.metadata),
        network=spec.network,
        lifecycle=spec.lifecycle,
        volumes=spec.volumes,
        driver=order.tier.driver,
        isolation=order.tier.isolation,
        hardened=spec.hardened,
        owner=spec.owner,
        labels=dict(spec.labels),
        default_user=foundation.default_user,
        default_workdir=foundation.default_workdir,
    )


async def _bring_up(node: Node, order: _Order, resident: Resident) -> None:
    try:
        await node.ledger.open(resident, anew=order.sandbox_id is not None)
    except sqlite3.IntegrityError as error:
        raise BackendFailure(_CREATE, "the engine", "the new id was taken", retry=RetryClass.RETRYABLE) from error
    plan = await _booted(node, order, resident)
    assert resident.instance is not None
    resident.ref = resident.instance.ref
    await node.egress.lead(_CREATE, resident)
    inside = await node.links.connect(resident)
    await node.egress.settle(resident, inside)
    if not (plan.captured and order.tier.captures is SnapshotKind.CONTINUATION):  # else it goes on
        await started_up(_CREATE, inside, resident)
    now = node.clock.now()
    resident.info = replace(resident.info, started_at=now, deadline_at=deadline_at(now, order.lifetime_s))
    await node.ledger.move(resident, Act.READY, why=Why(cause="its agent answered", actor="engine"))


async def _booted(node: Node, order: _Order, resident: Resident) -> BootPlan:
    """The plan that it was booted by. What was started for all is made again where it is of no use any more."""
    for again in (True, False):
        started = ""
        if not order.spec.hardened:  # what runs already could gain privileges
            started = await node.started.captured(order.foundation, order.resources, order.tier)
        plan = _boot_plan(node, order, resident, started)
        within_s = COPY_WITHIN_S if plan.captured else BOOT_WITHIN_S
        try:
            async with (
                node.launches.turn(_CREATE),
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
    """Run what its template wants to run in each of its sandboxes. `BackendFailure` when that fails."""
    info, origin = resident.info, resident.origin
    if not origin.startup:
        return
    around = Surroundings(user=info.default_user, workdir=info.default_workdir, env=inside.env)
    startup = replace(origin.startup, ready_within_s=min(READY_WITHIN_S, origin.startup.ready_within_s))
    try:
        await start_up(inside.processes, startup, around)
    except TemplatePrepareFailure as failure:
        raise BackendFailure(operation, f"template {info.template_id}", str(failure)) from failure


def _boot_plan(node: Node, order: _Order, resident: Resident, started: str) -> BootPlan:
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
        volumes=node.volumes.wanted(_CREATE, resident.info.owner, resident.info.volumes),
    )


def deadline_at(now: datetime, lifetime_s: float | None) -> datetime | None:
    return None if lifetime_s is None else now + timedelta(seconds=lifetime_s)


def _settle_in(node: Node, order: _Order, resident: Resident, took_ms: float) -> None:
    """What a sandbox that lives gets without waiting. Nothing here can fail."""
    node.deadlines.arm(resident.id, order.lifetime_s)
    if resident.instance is not None:
        node.background(watch(node, resident, resident.instance), name=f"watch {resident.id}")
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
    if resident.info.state is SandboxState.RUNNING:  # the last record failed after the change in memory
        await node.ledger.note(resident, Act.KILL, Act.DELETE, why=why)
    else:
        await node.ledger.note(resident, Act.FAIL, Act.DELETE, why=why)
    node.figures.ended[EndCause.CREATE_FAILED] += 1
    node.roster.remove(resident)
    node.logs.retire(resident.id)
    if resident.template is not None:
        resident.template.release()


def _reason(failure: BaseException) -> str:
    if isinstance(failure, asyncio.CancelledError):
        return "the caller went away"
    return str(failure) if isinstance(failure, FirkinError) else f"{type(failure).__name__}: {failure}"
