"""Noticing what ends without being asked."""

from __future__ import annotations

import logging

from firkin.engine import endings
from firkin.engine.node import Node
from firkin.engine.roster import Resident
from firkin.law.driver import Instance, InstanceEnd
from firkin.law.states import Act, EndCause, SandboxState, allows

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
        pooled = resident.info.state is SandboxState.POOLED
        if pooled:
            node.warm.drop(resident)
        await endings.fail(node, resident, cause, end.detail)
        if pooled:
            await endings.forget(node, resident, cause)
