"""What a deadline does: it ends the sandbox or pauses it, as its lifecycle says."""

from __future__ import annotations

import logging

from firkin.engine import endings, pauses
from firkin.engine.ledger import Why
from firkin.engine.node import Node
from firkin.engine.roster import Resident
from firkin.law.errors import CapacityRejected, RejectReason
from firkin.law.ids import SandboxId
from firkin.law.logs import LogLevel, LogSource
from firkin.law.sandboxes import OnTimeout
from firkin.law.states import EndCause, SandboxState

RETRY_AFTER_S = 5.0
_log = logging.getLogger("firkin.engine")


def expire(node: Node, sandbox_id: SandboxId) -> None:
    """Begin to end a sandbox whose deadline has passed. Does not wait."""
    resident = node.roster.get(sandbox_id)
    if resident is not None:
        node.acts.start(_expire(node, resident, resident.renewals), name=f"expire {sandbox_id}")


async def _expire(node: Node, resident: Resident, renewals: int) -> None:
    to_pause = resident.info.lifecycle.on_timeout is OnTimeout.PAUSE
    if not to_pause:
        resident.hurry.set()
    try:
        async with resident.turn("end at the deadline"):
            if resident.renewals != renewals or node.roster.get(resident.id) is not resident:
                return  # renewed or deleted in the meantime
            if to_pause and resident.info.state is SandboxState.RUNNING:
                await _pause(node, resident)
            elif resident.info.state is not SandboxState.PAUSED:  # a pause was faster: what is paused has no deadline
                why = Why.ended(EndCause.DEADLINE, actor="deadline")
                await endings.delete(node, resident, why, force=True)
    except Exception as error:  # noqa: BLE001 — root of a task: a sandbox past its deadline is tried again
        _log.error("expiry failed sandbox=%s error=%s", resident.id, error)
        if node.roster.get(resident.id) is resident:
            node.deadlines.arm(resident.id, RETRY_AFTER_S)


async def _pause(node: Node, resident: Resident) -> None:
    """Without its memory, where its owner has as many as may be that keep theirs: there is nobody to ask."""
    cause = EndCause.DEADLINE.value
    if resident.info.lifecycle.keep_memory:
        try:
            await pauses.pause(node, resident, keep_memory=True, why=Why(cause=cause, actor="deadline"))
            return
        except CapacityRejected as error:
            if error.refusal.reason is not RejectReason.QUOTA:
                raise
            cause = f"{cause}; only its files are kept, since {error.limit} of its owner's keep their memory already"
            node.logs.write(resident.id, LogSource.RUNTIME, f"paused: {cause}", LogLevel.WARN)
    await pauses.pause(node, resident, keep_memory=False, why=Why(cause=cause, actor="deadline"))
