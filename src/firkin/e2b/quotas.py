"""How many sandboxes a tenant may have running, counted with those on their way: creates, forks and resumptions."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from firkin.e2b.exchange import Refused
from firkin.law.backend import SandboxBackend
from firkin.law.sandboxes import SandboxFilter
from firkin.law.states import SandboxState

_SETTLED = frozenset({SandboxState.RUNNING, SandboxState.STOPPING})  # those on their way are counted here


class Quotas:
    """`limits` by the tenant's name; None, or a name that is not there, is no limit."""

    def __init__(self, backend: SandboxBackend, limits: Mapping[str, int | None]) -> None:
        self._backend = backend
        self._limits = limits
        self._in_flight: Counter[str] = Counter()

    @asynccontextmanager
    async def room_for(self, owner: str, count: int) -> AsyncIterator[None]:
        """While the block runs, `count` sandboxes more count as the owner's. `Refused` (429) beyond the quota."""
        most = self._limits.get(owner)
        if most is not None:
            settled = await self._backend.sandboxes.list(SandboxFilter(owner=owner, states=_SETTLED))
            if len(settled) + self._in_flight[owner] + count > most:
                text = f"you have reached the maximum number of concurrent sandboxes ({most})"
                raise Refused(429, text, should_retry=False)
        self._in_flight[owner] += count
        try:
            yield
        finally:
            self._in_flight[owner] -= count
