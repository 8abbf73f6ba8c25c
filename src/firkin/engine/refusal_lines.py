"""One line in a sandbox's log for each destination that it was refused: what is blocked is explained.

A destination is told again after a minute at the earliest, and of one that tries
many only the first few of each minute are told: a flood must not push out of the
log what matters more.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from firkin.engine.node import Node
from firkin.engine.roster import Resident
from firkin.law.errors import FirkinError
from firkin.law.ids import SandboxId
from firkin.law.logs import LogLevel, LogSource
from firkin.law.network_use import RefusedFlow
from firkin.law.states import SandboxState

EVERY_S = 1.0
AGAIN_AFTER_S = 60.0
MOST_A_MINUTE = 10
_log = logging.getLogger("firkin.engine")
_Flow = tuple[str, str, int, str]


class _Told:
    """What one sandbox's log has been told in the minute that began at `since`."""

    __slots__ = ("flows", "packets", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.flows: set[_Flow] = set()
        self.packets: dict[_Flow, int] = {}


class RefusalLines:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._told: dict[SandboxId, _Told] = {}

    async def run(self) -> None:
        clock = self._node.clock
        while True:
            await clock.sleep_until(clock.monotonic() + EVERY_S)
            residents = [one for one in self._node.roster if one.info.state is SandboxState.RUNNING]
            for resident in residents:
                await self._look_at(resident)
            here = {resident.id for resident in residents}
            self._told = {sandbox_id: told for sandbox_id, told in self._told.items() if sandbox_id in here}
            await asyncio.sleep(0)

    async def _look_at(self, resident: Resident) -> None:
        instance = resident.instance
        if instance is None:
            return
        flows: list[RefusedFlow] = []
        with suppress(FirkinError):  # it ends just now
            flows = list(await instance.refused())
        if flows:
            self.tell(resident.id, flows)

    def tell(self, sandbox_id: SandboxId, flows: list[RefusedFlow]) -> None:
        """Write down which of `flows`, the newest first, are news."""
        now = self._node.clock.monotonic()
        told = self._told.setdefault(sandbox_id, _Told(now))
        if now >= told.since + AGAIN_AFTER_S:
            told.since, told.flows = now, set()
        for flow in reversed(flows):
            key = (flow.destination, flow.protocol, flow.port, flow.rule)
            news = told.packets.get(key) != flow.packets and key not in told.flows
            if news and len(told.flows) < MOST_A_MINUTE:
                told.flows.add(key)
                self._node.logs.write(sandbox_id, LogSource.RUNTIME, line(flow), LogLevel.WARN)
        told.packets = {(flow.destination, flow.protocol, flow.port, flow.rule): flow.packets for flow in flows}


def line(flow: RefusedFlow) -> str:
    """``refused: tcp to 10.0.0.1 port 80: a private address …``."""
    port = f" port {flow.port}" if flow.port else ""
    return f"refused: {flow.protocol} to {flow.destination}{port}: {flow.rule}"
