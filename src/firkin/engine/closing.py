"""Stopping to serve: what is under way ends, sandboxes live on unless the operator wants none left."""

from __future__ import annotations

import asyncio
import logging

from firkin.engine import endings
from firkin.engine.ledger import Why
from firkin.engine.node import Node
from firkin.engine.roster import Resident
from firkin.law.errors import FirkinError
from firkin.law.states import EndCause, SandboxState

DRAIN_WITHIN_S = 20.0
AT_ONCE = 32
_log = logging.getLogger("firkin.engine")


async def close_down(node: Node, *, kill_all: bool) -> None:
    """Wait for creates and acts, end everything if asked, close every way in."""
    gate = asyncio.Semaphore(AT_ONCE)
    node.line.close()
    await node.acts.drain(within_s=DRAIN_WITHIN_S)
    chosen = [resident for resident in node.roster if kill_all or resident.info.state is SandboxState.CREATING]
    settling = (_settle(node, resident, gate, kill_all=kill_all) for resident in chosen)
    unsettled = await asyncio.gather(*settling, return_exceptions=True)
    await node.acts.drain(within_s=DRAIN_WITHIN_S)
    await node.exposures.aclose()
    for resident in node.roster:
        await node.links.drop(resident)
    node.volume_threads.shutdown()
    node.events.close()
    node.logs.close()
    failures = [failure for failure in unsettled if failure is not None]
    for failure in failures:
        _log.error("not settled error=%r", failure)
    if failures:
        raise failures[0]  # last of all: what one suffers must not keep the others alive


async def _settle(node: Node, resident: Resident, gate: asyncio.Semaphore, *, kill_all: bool) -> None:
    """Wait for the act that holds it; then end it, if asked. A failure leaves it to the next start."""
    if kill_all:
        resident.hurry.set()
    try:
        async with gate, resident.turn("shut down"):
            if kill_all and node.roster.get(resident.id) is resident:
                why = Why.ended(EndCause.SERVER_SHUTDOWN, actor="engine")
                await endings.delete(node, resident, why, force=True)
    except FirkinError as error:
        _log.error("not ended sandbox=%s error=%s", resident.id, error)
