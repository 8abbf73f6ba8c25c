"""Every sandbox that has not been deleted, in memory: what the verbs work on.

Whoever changes a resident holds its lock. Reading needs none, so one sandbox
that hangs never holds up a list or another sandbox.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from firkin.engine.records import Records
from firkin.engine.stored_forms import Origin
from firkin.law.driver import Instance, InstanceRef
from firkin.law.errors import DeadlineExceeded, NotFound, ResourceKind, WrongState
from firkin.law.ids import SandboxId
from firkin.law.sandboxes import SandboxInfo
from firkin.law.states import SandboxState

if TYPE_CHECKING:
    from firkin.engine.admission import Reservation
    from firkin.engine.links import Inside
    from firkin.engine.template_uses import TemplateUse

LOCK_WITHIN_S = 60.0


@dataclass(slots=True, eq=False, kw_only=True, weakref_slot=True)
class Resident:
    """One sandbox as it is now. `info` is replaced, never changed in place.

    `instance` is set while there is something to destroy; once it is `leaving`
    nobody is let in, and a dial under way is cut short by its `dial_limit`; `renewals` tells an
    expiry that fired from the renewal or pause that overtook it; `trusts` is the certificate of the
    egress authority that it has in its trust stores, `to_trust` one that has to go there; `hurry` cuts a graceful
    stop or a capture short; `freezing` counts it as paused with its memory before it is.
    """

    info: SandboxInfo
    origin: Origin
    ref: InstanceRef | None = None
    instance: Instance | None = None
    inside: Inside | None = None
    reservation: Reservation | None = None
    template: TemplateUse | None = None
    leaving: bool = False
    dial_limit: asyncio.Timeout | None = None
    trusts: str = ""
    to_trust: str = ""
    renewals: int = 0
    freezing: bool = False
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    dialling: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def id(self) -> SandboxId:
        return self.info.id

    @asynccontextmanager
    async def turn(self, operation: str) -> AsyncIterator[None]:
        """Hold the lock; `DeadlineExceeded` when another act keeps it too long."""
        try:
            async with asyncio.timeout(LOCK_WITHIN_S):
                await self.lock.acquire()
        except TimeoutError as error:
            raise DeadlineExceeded(operation, LOCK_WITHIN_S, sandbox_id=self.id) from error
        try:
            yield
        finally:
            self.lock.release()

    def require_running(self, operation: str) -> None:
        """`WrongState`, with the cause where it has ended."""
        info = self.info
        if info.state is not SandboxState.RUNNING:
            why = f" ({info.end_cause.value})" if info.end_cause else ""
            raise WrongState(operation, ResourceKind.SANDBOX, info.id, f"{info.state.value}{why}")

    def release(self) -> None:
        """Give back what was promised to it. Idempotent."""
        if self.reservation is not None:
            self.reservation.release()


class Roster:
    def __init__(self, records: Records) -> None:
        self._records = records
        self._residents: dict[str, Resident] = {}

    def add(self, resident: Resident) -> None:
        self._residents[resident.id] = resident

    def remove(self, resident: Resident) -> None:
        if self._residents.get(resident.id) is resident:
            del self._residents[resident.id]

    def get(self, sandbox_id: str) -> Resident | None:
        return self._residents.get(sandbox_id)

    async def meet(self, operation: str, sandbox_id: str) -> Resident:
        """The resident of that id; `NotFound` whose detail says how it ended. What waits in a pool meets nobody."""
        resident = self._residents.get(sandbox_id)
        if resident is None or resident.info.state is SandboxState.POOLED:
            raise await self.absence(operation, sandbox_id)
        return resident

    async def check_present(self, operation: str, resident: Resident) -> None:
        """`NotFound` when it was deleted while an act waited for its turn."""
        if self.get(resident.id) is not resident:
            raise await self.absence(operation, resident.id)

    async def absence(self, operation: str, sandbox_id: str) -> NotFound:
        last = await self._records.last(sandbox_id)
        return NotFound(operation, ResourceKind.SANDBOX, sandbox_id, detail=describe_end(last) if last else "")

    def __contains__(self, sandbox_id: str) -> bool:
        return sandbox_id in self._residents

    def __iter__(self) -> Iterator[Resident]:
        return iter(tuple(self._residents.values()))


def describe_end(info: SandboxInfo) -> str:
    """``it ended at 2026-01-31T12:00:00Z: deadline``."""
    if info.ended_at is None or info.end_cause is None:
        return ""
    at = info.ended_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"it ended at {at}: {info.end_cause.value}" + (f" ({info.end_detail})" if info.end_detail else "")
