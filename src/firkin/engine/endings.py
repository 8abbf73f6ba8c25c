"""Ending a sandbox: by a caller, by its deadline, by itself. Whoever calls holds the resident's lock.

stop and kill keep the files, delete removes them. Why it ends is written down before
anything is destroyed, so that a server killed meanwhile is followed by one that
knows. What the driver could not end
stays on the roster as FAILED, so that it can be seen and ended again.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from firkin.engine.guest_faults import GuestRefused
from firkin.engine.guest_processes import GuestProcesses
from firkin.engine.ledger import Why
from firkin.engine.node import Node
from firkin.engine.roster import Resident
from firkin.engine.substrate import substrate
from firkin.law.errors import FirkinError
from firkin.law.ids import ProcessId
from firkin.law.processes import ById, Signal, signal_number
from firkin.law.sandboxes import KillSignal
from firkin.law.states import Act, EndCause, SandboxState, allows, next_state
from firkin.lifetimes import children
from firkin.phases import mark

DESTROY_WITHIN_S = 30.0
OBEY_WITHIN_S = 2.0
ANSWER_WITHIN_S = 5.0


async def destroy(node: Node, resident: Resident) -> None:
    """Leave nothing running and give back what it held. Raises with the resident FAILED."""
    await node.exposures.drop(resident.id)
    await node.links.drop(resident)
    mark("hang up")
    try:
        if resident.instance is not None:
            async with substrate(
                "end the sandbox", resident.info.driver, within_s=DESTROY_WITHIN_S, sandbox_id=resident.id
            ):
                await resident.instance.destroy()
    except FirkinError as error:
        if allows(resident.info.state, Act.FAIL):
            why = Why.ended(EndCause.DRIVER_FAILED, actor="engine", detail=str(error))
            await node.ledger.note(resident, Act.FAIL, why=why)
        raise
    resident.instance = resident.ref = None
    resident.release()


async def kill(node: Node, resident: Resident, why: Why) -> None:
    """End it at once, whatever it does. One that has ended already stays as it is."""
    next_state(resident.id, resident.info.state, Act.KILL)
    had_ended = resident.info.ended_at is not None
    if not had_ended:
        node.ledger.begin_end(resident, why=why, removes=False)
    await destroy(node, resident)
    if not had_ended:
        await node.ledger.note(resident, Act.KILL, why=why)
        _count(node, why)


async def signal_all(node: Node, resident: Resident, signal: KillSignal, why: Why) -> None:
    """Send the signal to every process that Firkin started and give them two seconds to obey. A kill follows."""
    node.ledger.begin_end(resident, why=why, removes=False)
    if signal is Signal.TERM:
        await _ask_to_end(node, resident, OBEY_WITHIN_S)
        return
    with suppress(FirkinError, GuestRefused, TimeoutError):  # a guest that does not listen is killed all the same
        inside = await node.links.connect(resident)
        number = signal_number(signal)
        async with asyncio.timeout(OBEY_WITHIN_S):
            told = [_signal_one(inside.processes, process.id, number) for process in await inside.processes.list()]
            await asyncio.gather(*told)


async def stop(node: Node, resident: Resident, grace_s: float) -> None:
    """SIGTERM to all, patience, then the end."""
    if resident.info.state is SandboxState.STOPPED:
        return
    await node.ledger.move(resident, Act.STOP, why=Why(cause="stop requested"))
    await _ask_to_end(node, resident, grace_s)
    await destroy(node, resident)  # that it stops is recorded
    why = Why.ended(EndCause.REQUESTED, actor="caller", detail="stopped")
    await node.ledger.note(resident, Act.STOPPED, why=why)
    _count(node, why)


async def delete(node: Node, resident: Resident, why: Why, *, force: bool) -> None:
    """Remove the files and the resident. `WrongState` while it runs, unless forced."""
    alive = allows(resident.info.state, Act.KILL) and resident.info.ended_at is None
    if not (force and alive):
        next_state(resident.id, resident.info.state, Act.DELETE)
    if alive:
        node.ledger.begin_end(resident, why=why, removes=True)
    await destroy(node, resident)
    try:
        async with substrate(
            "delete the sandbox", resident.info.driver, within_s=DESTROY_WITHIN_S, sandbox_id=resident.id
        ):
            await node.driver.discard(resident.id)
    except FirkinError:
        if alive:
            await node.ledger.note(resident, Act.KILL, why=why)
            _count(node, why)
        raise
    mark("discard")
    leave(node, resident)  # before the commit: whoever sees the files gone must not meet the sandbox any more
    if alive:
        await node.ledger.note(resident, Act.KILL, Act.DELETE, why=why)
        _count(node, why)
    else:
        await node.ledger.note(resident, Act.DELETE, why=Why(cause=why.cause, actor=why.actor))
    mark("record")


def leave(node: Node, resident: Resident) -> None:
    """Take a deleted sandbox off everything that knows it."""
    node.deadlines.disarm(resident.id)
    node.roster.remove(resident)
    node.logs.retire(resident.id)
    node.samples.retire(resident.id)
    node.programs.forget(resident.id)
    resident.release()
    if resident.template is not None:
        resident.template.release()


async def forget(node: Node, resident: Resident, cause: EndCause) -> None:
    """One that ended while nobody knew it: there is nobody to ask about it."""
    leave(node, resident)
    await node.ledger.note(resident, Act.DELETE, why=Why(cause=cause.value, actor="engine"))


async def fail(node: Node, resident: Resident, end: EndCause, detail: str) -> None:
    """It ended by itself: say why, release everything, and keep the record to be asked about."""
    why = Why.ended(end, actor="engine", detail=detail)
    await node.ledger.note(resident, Act.FAIL, why=why)
    _count(node, why)
    await destroy(node, resident)
    async with substrate("discard files", resident.info.driver, within_s=DESTROY_WITHIN_S, sandbox_id=resident.id):
        await node.driver.discard(resident.id)


def _count(node: Node, why: Why) -> None:
    if why.end is not None:
        node.figures.ended[why.end] += 1


async def _signal_one(processes: GuestProcesses, process_id: ProcessId, number: int) -> None:
    with suppress(FirkinError):  # it may have ended meanwhile
        await processes.signal(ById(process_id), number)
        await processes.wait(ById(process_id))


async def _shut_down(node: Node, resident: Resident, grace_s: float) -> None:
    inside = await node.links.connect(resident)
    await inside.link.call("shutdown", {"grace_ms": int(grace_s * 1000)}, within_s=grace_s + ANSWER_WITHIN_S)


async def _ask_to_end(node: Node, resident: Resident, grace_s: float) -> None:
    """Until every process has ended, or the grace is over, or somebody wants it dead now."""
    with suppress(FirkinError, GuestRefused, TimeoutError):  # a guest that does not listen is killed all the same
        async with children() as waiting:
            asked = waiting.start(_shut_down(node, resident, grace_s), name=f"shutdown {resident.id}")
            hurried = waiting.start(resident.hurry.wait(), name=f"hurry {resident.id}")
            await asyncio.wait((asked, hurried), return_when=asyncio.FIRST_COMPLETED)
