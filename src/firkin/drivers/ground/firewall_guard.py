"""Whether other programs left the firewall alone, looked at once a second, and put right when they did not.

``nft flush ruleset`` takes all tables of the host: until ours are back, sandboxes
reach the host and each other. Nothing is created meanwhile (`SandboxNetworks`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from firkin.host.firewall import Firewall, FirewallUnavailable
from firkin.host.stoppable import in_thread
from firkin.law.errors import FirkinError
from firkin.lifetimes import Children

_LOOKS_EVERY_S = 1.0
_log = logging.getLogger("firkin.host")


class FirewallGuard:
    """`restored` puts back what hangs at the table, once that stands again."""

    def __init__(self, firewall: Firewall, restored: Callable[[], Awaitable[None]]) -> None:
        self._firewall = firewall
        self._restored = restored
        self._tasks = Children()
        self._reported = ""

    def start(self) -> None:
        self._tasks.start(self._watch(), name="firewall guard")

    async def aclose(self) -> None:
        await self._tasks.aclose()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOKS_EVERY_S)
            try:
                if not await in_thread(lambda _: self._firewall.stands()):
                    await self._put_right()
                self._reported = ""
            except (FirkinError, FirewallUnavailable, OSError) as error:
                self._report(str(error))

    async def _put_right(self) -> None:
        _log.error(
            "another program removed Firkin's firewall table from this host; sandboxes could reach the host and each"
            " other until it is back; have it remove its own tables only, not the whole ruleset"
        )
        await in_thread(lambda _: self._firewall.restore())
        await self._restored()
        _log.warning("firewall restored: every sandbox has its network policy again")

    def _report(self, trouble: str) -> None:
        """Once, however long it lasts."""
        if trouble != self._reported:
            _log.error("the firewall is not in force, and no sandbox is created error=%s", trouble)
        self._reported = trouble
