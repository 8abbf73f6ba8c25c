"""Pausing and resuming: in place with the memory, or down to the files alone.

With its memory a sandbox is frozen where it is and its record changes after.
Without, its files are all that stays: what it is about to become is recorded
before anything is ended, so that a server which dies in between knows at its next
start that the files are to be kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from firkin.engine import endings
from firkin.engine.admission import RESUME, Reservation
from firkin.engine.creation import BOOT_WITHIN_S, UNDO_WITHIN_S, started_up
from firkin.engine.ledger import Why
from firkin.engine.node import Node, require
from firkin.engine.orders import deadline_at
from firkin.engine.roster import Resident
from firkin.engine.sandbox_requests import deadline_after
from firkin.engine.substrate import substrate
from firkin.engine.waiting_line import Ticket, Wish
from firkin.engine.watching import watch
from firkin.law.capabilities import CapabilityName
from firkin.law.driver import BootPlan, Instance
from firkin.law.errors import (
    BackendFailure,
    CapacityRejected,
    FirkinError,
    Refusal,
    RejectReason,
    ResourceKind,
    SandboxUnavailable,
    WrongState,
)
from firkin.law.ids import SandboxId
from firkin.law.logs import LogLevel, LogSource
from firkin.law.sandboxes import PauseMode, SandboxInfo
from firkin.law.snapshots import PausedSandbox, PauseOptions, ResumeOptions
from firkin.law.states import Act, EndCause, SandboxState, next_state
from firkin.lifetimes import finish

FREEZE_WITHIN_S = 10.0
ANSWER_WITHIN_S = 2.0
RECLAIM_AFTER_S = 5.0
_PAUSE, _RESUME = "pause sandbox", "resume sandbox"
_log = logging.getLogger("firkin.engine")


class LocalPauses:
    """The `PauseControl` of the engine."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def pause(self, sandbox_id: SandboxId, options: PauseOptions) -> PausedSandbox:
        await require(self._node, _PAUSE, sandbox_id, CapabilityName.PAUSE_CAPTURE)
        return await self._node.acts.run(self._pause(sandbox_id, options), name=f"pause {sandbox_id}")

    async def resume(self, sandbox_id: SandboxId, options: ResumeOptions | None = None) -> SandboxInfo:
        await require(self._node, _RESUME, sandbox_id, CapabilityName.PAUSE_RESUME)
        ticket = Ticket()
        work = self._resume(sandbox_id, options or ResumeOptions(), ticket)
        try:
            return await self._node.acts.run(work, name=f"resume {sandbox_id}")
        except asyncio.CancelledError:
            ticket.withdraw()  # who has gone does not wait for room any longer
            raise

    async def _pause(self, sandbox_id: SandboxId, options: PauseOptions) -> PausedSandbox:
        node = self._node
        resident = await node.roster.meet(_PAUSE, sandbox_id)
        async with resident.turn(_PAUSE):
            await node.roster.check_present(_PAUSE, resident)
            next_state(sandbox_id, resident.info.state, Act.PAUSE)
            answers = await _answers(node, resident)
            if not answers and (options.require_healthy or not options.keep_memory):
                raise SandboxUnavailable(_PAUSE, sandbox_id, "its agent does not answer, so it was not paused")
            why = Why(cause="pause requested", actor=options.actor)
            await pause(node, resident, keep_memory=options.keep_memory, why=why, answers=answers)
        return PausedSandbox(sandbox_id=sandbox_id)

    async def _resume(self, sandbox_id: SandboxId, options: ResumeOptions, ticket: Ticket) -> SandboxInfo:
        node = self._node
        resident = await node.roster.meet(_RESUME, sandbox_id)
        async with resident.turn(_RESUME):
            await node.roster.check_present(_RESUME, resident)
            ticket.owner, ticket.hurry = resident.info.owner, resident.hurry
            await _resume_one(node, resident, options, ticket)
            return resident.info


async def pause(node: Node, resident: Resident, *, keep_memory: bool, why: Why, answers: bool = True) -> None:
    """Pause a running sandbox. The caller holds its lock. A failure leaves it running, unless it says FAILED.

    `CapacityRejected` (`QUOTA`) when as many of its owner's are paused with their memory as may be.
    """
    next_state(resident.id, resident.info.state, Act.PAUSE)
    if keep_memory:
        with _counted(node, resident):
            await _freeze(node, resident, why, answers=answers)
    else:
        await _put_down(node, resident, why)
    resident.renewals += 1
    node.deadlines.disarm(resident.id)


@contextmanager
def _counted(node: Node, resident: Resident) -> Iterator[None]:
    """For the length of a freeze it counts as frozen, so that those which come together pass no limit together."""
    owner = resident.info.owner
    most = node.policies.most_frozen.get(owner)
    if most is not None and sum(_is_frozen(other) for other in node.roster if other.info.owner == owner) >= most:
        raise CapacityRejected(
            _PAUSE,
            "places for sandboxes that are paused with their memory",
            requested=1,
            available=0,
            limit=most,
            refusal=Refusal(reason=RejectReason.QUOTA),
        )
    resident.freezing = True
    try:
        yield
    finally:
        resident.freezing = False


def _is_frozen(resident: Resident) -> bool:
    info = resident.info
    return resident.freezing or (info.state is SandboxState.PAUSED and info.pause_mode is PauseMode.FULL)


async def _answers(node: Node, resident: Resident) -> bool:
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            await node.links.ping(resident)
    except (FirkinError, TimeoutError):
        return False
    return True


async def _freeze(node: Node, resident: Resident, why: Why, *, answers: bool) -> None:
    instance, before = resident.instance, resident.info
    if instance is None:
        raise SandboxUnavailable(_PAUSE, resident.id, "it has ended")
    try:
        async with substrate(_PAUSE, resident.info.driver, within_s=FREEZE_WITHIN_S, sandbox_id=resident.id):
            await instance.freeze()
        resident.info = _paused(node, before, PauseMode.FULL, unresponsive=not answers)
        await node.ledger.move(resident, Act.PAUSE, why=why)
    except BaseException:
        resident.info = before
        with suppress(FirkinError, TimeoutError, OSError):
            await finish(instance.thaw(), within_s=FREEZE_WITHIN_S)
        raise
    await node.links.drop(resident)
    _hold_memory(node, resident)
    node.background(_reclaim(node, resident, instance), name=f"reclaim {resident.id}")


def _hold_memory(node: Node, resident: Resident) -> None:
    """Of its room only the memory is kept. In this order: what is given back goes to those who wait at once."""
    before, resident.reservation = resident.reservation, node.admission.hold_memory(resident.info.resources)
    if before is not None:
        before.release()


async def _reclaim(node: Node, resident: Resident, instance: Instance) -> None:
    """Not at once: who resumes soon should find its caches."""
    await node.clock.sleep_until(node.clock.monotonic() + RECLAIM_AFTER_S)
    if resident.instance is instance and resident.info.state is SandboxState.PAUSED:
        await instance.reclaim()


async def _put_down(node: Node, resident: Resident, why: Why) -> None:
    before = resident.info
    resident.info = replace(before, pause_mode=PauseMode.FILESYSTEM)
    try:
        await node.ledger.save(resident)
    except BaseException:
        resident.info = before
        raise
    await endings.destroy(node, resident)
    resident.info = _paused(node, resident.info, PauseMode.FILESYSTEM, unresponsive=False)
    await node.ledger.note(resident, Act.PAUSE, why=why)


def _paused(node: Node, info: SandboxInfo, mode: PauseMode, *, unresponsive: bool) -> SandboxInfo:
    now = node.clock.now()
    return replace(info, paused_at=now, pause_mode=mode, deadline_at=None, unresponsive_at_pause=unresponsive)


async def _resume_one(node: Node, resident: Resident, options: ResumeOptions, ticket: Ticket) -> None:
    next_state(resident.id, resident.info.state, Act.RESUME)
    lifetime_s = deadline_after(options.deadline, node.policies.deadlines, node.clock.now())
    frozen = resident.info.pause_mode is PauseMode.FULL
    if frozen and options.keep_memory and resident.info.unresponsive_at_pause:
        state = "paused with an agent that did not answer; resume it without its memory"
        raise WrongState(_RESUME, ResourceKind.SANDBOX, resident.id, state)
    why = Why(cause="resume requested", actor=options.actor)
    room = await _room(node, resident, ticket)
    before = resident.info
    if options.lifecycle is not None:
        resident.info = replace(before, lifecycle=options.lifecycle)
    try:
        await _run_on(node, resident, _Again(room, lifetime_s, why), keep_memory=options.keep_memory)
    except BaseException:
        resident.info = replace(resident.info, lifecycle=before.lifecycle)
        raise
    resident.renewals += 1
    node.deadlines.arm(resident.id, lifetime_s)


@dataclass(frozen=True, slots=True)
class _Again:
    """What a sandbox that is to run again gets."""

    room: Reservation
    lifetime_s: float | None
    why: Why


async def _room(node: Node, resident: Resident, ticket: Ticket) -> Reservation:
    """Room to run again; `CapacityRejected` leaves it paused as it was. A frozen one has its memory already."""
    resources, held = resident.info.resources, resident.reservation
    if resident.info.pause_mode is PauseMode.FULL and held is not None:
        wish = Wish(RESUME, resources, lambda: node.admission.reserve_again(resources, held))
    else:
        wish = Wish(RESUME, resources, lambda: node.admission.reserve(resources, operation=RESUME))
    try:
        return await node.line.admitted(wish, ticket)
    except CapacityRejected:
        node.figures.refused += 1
        raise


async def _run_on(node: Node, resident: Resident, again: _Again, *, keep_memory: bool) -> None:
    frozen = resident.info.pause_mode is PauseMode.FULL
    resident.reservation = again.room
    if frozen and keep_memory:
        await _thaw(node, resident, again)
        return
    if frozen:
        await _forget_memory(node, resident, again.room)
    await _boot_again(node, resident, again)


async def _thaw(node: Node, resident: Resident, again: _Again) -> None:
    instance, before = resident.instance, resident.info
    if instance is None:
        again.room.release()
        raise SandboxUnavailable(_RESUME, resident.id, "it has ended")
    node.links.readmit(resident)
    try:
        await _lead_again(node, resident)
        async with substrate(_RESUME, resident.info.driver, within_s=FREEZE_WITHIN_S, sandbox_id=resident.id):
            await instance.thaw()
        if resident.to_trust:  # a server came and went while it stood still, or the authority grew old
            await node.egress.settle(resident, await node.links.connect(resident))
        resident.info = _running(node, before, again.lifetime_s)
        await node.ledger.move(resident, Act.RESUME, why=again.why)
    except BaseException:
        resident.info = before
        with suppress(FirkinError, TimeoutError, OSError):
            await finish(instance.freeze(), within_s=FREEZE_WITHIN_S)
        await node.links.drop(resident)
        _hold_memory(node, resident)
        raise


async def _lead_again(node: Node, resident: Resident) -> None:
    """Its gateway led it all the while; told once more, it renews what has grown old."""
    try:
        await node.egress.lead(_RESUME, resident)
    except FirkinError as error:
        _log.error("not led to an egress gateway sandbox=%s error=%s", resident.id, error)


async def _forget_memory(node: Node, resident: Resident, room: Reservation) -> None:
    """End what is frozen and keep its files: from here on it is paused without its memory."""
    resident.info = replace(resident.info, pause_mode=PauseMode.FILESYSTEM, unresponsive_at_pause=False)
    resident.reservation = None  # the room is there for what comes next, not for what ends
    try:
        await node.ledger.save(resident)
        await endings.destroy(node, resident)
        await node.ledger.save(resident)
    except BaseException:
        room.release()
        if resident.instance is not None:
            resident.reservation = node.admission.hold_memory(resident.info.resources)
        raise
    resident.reservation = room


async def _boot_again(node: Node, resident: Resident, again: _Again) -> None:
    """Boot from the files that its last run left. A failure leaves it paused, and the files as they are."""
    before = resident.info
    if resident.origin.root is None:
        again.room.release()
        raise BackendFailure(_RESUME, "the engine", "the record does not say what the sandbox was made on")
    plan = BootPlan(
        sandbox_id=resident.id,
        root=resident.origin.root,
        resources=before.resources,
        network=before.network,
        hostname=str(resident.id),
        hardened=before.hardened,
        continues=True,
        isolation=node.tiers.isolation_of(before.driver) or "",
        volumes=node.volumes.wanted(_RESUME, before.owner, before.volumes),
    )
    try:
        async with (
            node.launches.turn(_RESUME, before.owner),
            substrate(_RESUME, resident.info.driver, within_s=BOOT_WITHIN_S, sandbox_id=resident.id),
        ):
            resident.instance = await node.driver.boot(plan)
        resident.ref = resident.instance.ref
        node.links.readmit(resident)
        await node.egress.lead(_RESUME, resident)
        inside = await node.links.connect(resident)
        await node.egress.settle(resident, inside)
        await started_up(_RESUME, inside, resident)
        resident.info = _running(node, before, again.lifetime_s)
        await node.ledger.move(resident, Act.RESUME, why=again.why)
    except BaseException:
        resident.info = before
        await finish(_lie_down_again(node, resident), within_s=UNDO_WITHIN_S)
        raise
    node.background(watch(node, resident, resident.instance), name=f"watch {resident.id}")


async def _lie_down_again(node: Node, resident: Resident) -> None:
    await node.links.drop(resident)
    instance, resident.instance, resident.ref = resident.instance, None, None
    resident.release()
    if instance is not None:
        async with substrate(_RESUME, resident.info.driver, within_s=UNDO_WITHIN_S / 2, sandbox_id=resident.id):
            await instance.destroy()


def _running(node: Node, info: SandboxInfo, lifetime_s: float | None) -> SandboxInfo:
    ends = deadline_at(node.clock.now(), lifetime_s)
    return replace(info, paused_at=None, pause_mode=None, unresponsive_at_pause=False, deadline_at=ends)


async def lay_down(node: Node, resident: Resident, lost_with: EndCause) -> None:
    """Only the files of what a server left are there: it is paused without its memory from here on."""
    had_memory = resident.info.state is SandboxState.PAUSED and resident.info.pause_mode is PauseMode.FULL
    paused_at = resident.info.paused_at or node.clock.now()
    resident.ref = None
    resident.info = replace(
        resident.info,
        pause_mode=PauseMode.FILESYSTEM,
        paused_at=paused_at,
        deadline_at=None,
        unresponsive_at_pause=False,
    )
    if resident.info.state is SandboxState.RUNNING:
        why = Why(cause="pause requested; the server ended meanwhile", actor="engine")
        await node.ledger.note(resident, Act.PAUSE, why=why)
    else:
        await node.ledger.save(resident)
    if had_memory:
        text = f"its memory was lost ({lost_with.value}); its files are kept and a resume boots from them"
        node.logs.write(resident.id, LogSource.RUNTIME, text, LogLevel.WARN)


def is_going_down(info: SandboxInfo) -> bool:
    """Whether the record was left in the middle of a pause without memory."""
    return info.state is SandboxState.RUNNING and info.pause_mode is PauseMode.FILESYSTEM
