"""Noticing what ends without being asked: an instance by itself, a sandbox by its deadline."""

from __future__ import annotations

import logging

from firkin.engine import endings
from firkin.engine.ledger import Why
from firkin.engine.node import Node
from firkin.engine.roster import Resident
from firkin.law.driver import Instance, InstanceEnd
from firkin.law.ids import SandboxId
from firkin.law.states import Act, EndCause, allows

RETRY_AFTER_S = 5.0
_log = logging.getLogger("firkin.engine")


async def watch(node: Node, resident: Resident, instance: Instance) -> None:
    """Wait for the end of `instance`; explain and clean up one that nobody asked for."""
    end = await _end_of(instance)
    try:
        await node.acts.run(_note_end(node, resident, instance, end), name=f"end {resident.id}")
    except Exception as error:  # noqa: BLE001 — root of a task: the resident is FAILED and can be deleted again
        _log.error("cleaning up failed sandbox=%s error=%s", resident.id, error)


async def _end_of(instance: Instance) -> InstanceEnd:
    try:
        return await instance.ended()
    except Exception as error:  # noqa: BLE001 — root of a task: a driver that cannot watch is a failed driver
        return InstanceEnd(EndCause.DRIVER_FAILED, str(error))


async def _note_end(node: Node, resident: Resident, instance: Instance, end: InstanceEnd) -> None:
    async with resident.turn("note the end"):
        if resident.instance is not instance or not allows(resident.info.state, Act.FAIL):
            return  # it was destroyed by us
        cause = EndCause.DRIVER_FAILED if end.cause is EndCause.REQUESTED else end.cause
        await endings.fail(node, resident, cause, end.detail)


def expire(node: Node, sandbox_id: SandboxId) -> None:
    """Begin to end a sandbox whose deadline has passed. Does not wait."""
    resident = node.roster.get(sandbox_id)
    if resident is not None:
        node.acts.start(_expire(node, resident, resident.renewals), name=f"expire {sandbox_id}")


async def _expire(node: Node, resident: Resident, renewals: int) -> None:
    resident.hurry.set()
    try:
        async with resident.turn("end at the deadline"):
            if resident.renewals != renewals or node.roster.get(resident.id) is not resident:
                return  # renewed or deleted in the meantime
            why = Why.ended(EndCause.DEADLINE, actor="deadline")
            await endings.delete(node, resident, why, force=True)
    except Exception as error:  # noqa: BLE001 — root of a task: a sandbox past its deadline is tried again
        _log.error("expiry failed sandbox=%s error=%s", resident.id, error)
        if node.roster.get(resident.id) is resident:
            node.deadlines.arm(resident.id, RETRY_AFTER_S)
