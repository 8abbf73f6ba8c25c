"""Disks of sandboxes that stand still: what was deleted on them can go back to the host.

Only of frozen ones: nobody is made to wait for the disk. Each is trimmed once
while it stands still, since nothing inside can delete anything more.
"""

from __future__ import annotations

import logging
from typing import Protocol, runtime_checkable
from weakref import WeakSet

from firkin.engine.roster import Resident, Roster
from firkin.engine.substrate import substrate
from firkin.law.errors import FirkinError
from firkin.law.sandboxes import PauseMode
from firkin.law.states import SandboxState

TRIM_WITHIN_S = 20.0
_log = logging.getLogger("firkin.engine")


@runtime_checkable
class Trims(Protocol):
    """An instance whose driver can give back what its disk no longer uses."""

    async def trim(self) -> int:
        """How many bytes went back to the host."""
        ...


class IdleDisks:
    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._trimmed: WeakSet[Resident] = WeakSet()

    def __len__(self) -> int:
        return len(self._idle())

    async def trim(self) -> int:
        """Trim each that has not been; returns how many bytes that gave back."""
        given_back = 0
        for resident, instance in self._idle():
            if resident.info.state is not SandboxState.PAUSED or resident.lock.locked():
                continue
            self._trimmed.add(resident)
            given_back += await _trimmed(resident, instance)
        return given_back

    def _idle(self) -> list[tuple[Resident, Trims]]:
        found: list[tuple[Resident, Trims]] = []
        for resident in self._roster:
            frozen = resident.info.state is SandboxState.PAUSED and resident.info.pause_mode is PauseMode.FULL
            if not frozen:
                self._trimmed.discard(resident)
            elif resident not in self._trimmed and isinstance(resident.instance, Trims):
                found.append((resident, resident.instance))
        return found


async def _trimmed(resident: Resident, instance: Trims) -> int:
    try:
        async with substrate("trim a disk", resident.info.driver, within_s=TRIM_WITHIN_S, sandbox_id=resident.id):
            return await instance.trim()
    except FirkinError as error:
        _log.warning("not trimmed sandbox=%s error=%s", resident.id, error)
        return 0
