"""The one place where a sandbox changes its state.

Table, record, journal, event and log move together: the state is what the table
allows, the record and its journal row are one commit, and only then is it told.
What has happened anyway is told although the disk is full; its rows follow.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import datetime

from firkin.engine.begun_ends import BegunEnd
from firkin.engine.clock import Clock
from firkin.engine.events import EventBus
from firkin.engine.logs import LogStore, describe_change
from firkin.engine.records import JournalEntry, Records, SandboxRecord
from firkin.engine.roster import Resident
from firkin.engine.stored_forms import readable
from firkin.law.errors import FirkinError
from firkin.law.events import LifecycleChanged
from firkin.law.ids import SandboxId
from firkin.law.logs import LogSource
from firkin.law.states import Act, EndCause, SandboxState, next_state

_LONGEST_WORD = 100  # so that the word of an end fits where it is left
_log = logging.getLogger("firkin.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """The reason of a change. `end` is set where the sandbox no longer runs because of it."""

    cause: str
    actor: str = "caller"
    end: EndCause | None = None
    detail: str = ""

    @classmethod
    def ended(cls, end: EndCause, *, actor: str, detail: str = "") -> Why:
        return cls(cause=f"{end.value}: {detail}" if detail else end.value, actor=actor, end=end, detail=detail)


class Ledger:
    def __init__(self, *, records: Records, events: EventBus, logs: LogStore, clock: Clock) -> None:
        self._records = records
        self._events = events
        self._logs = logs
        self._clock = clock

    async def open(self, resident: Resident, *, anew: bool = False) -> None:
        """Make the first record of a sandbox that is about to be made; `anew` takes the place of one that has ended."""
        info = resident.info
        entry = JournalEntry(
            sandbox_id=info.id, at=info.created_at, was="", became=info.state, cause="create requested", actor="caller"
        )
        await self._records.add(SandboxRecord(info=info, origin=resident.origin, ref=None), entry, anew=anew)
        self._tell(entry)

    async def move(self, resident: Resident, *acts: Act, why: Why) -> None:
        """Change the state by `acts`, durably or not at all. `WrongState` where the table forbids it."""
        before = resident.info
        entries = self._apply(resident, acts, why)
        try:
            await self._records.change(resident.info, resident.ref, entries)
        except FirkinError:
            resident.info = before
            raise
        for entry in entries:
            self._tell(entry)

    async def note(self, resident: Resident, *acts: Act, why: Why) -> None:
        """As `move`, for what has happened anyway: neither a full disk nor a record that
        cannot be written may keep a sandbox from ending."""
        entries = self._apply(resident, acts, why)
        try:
            if not await self._records.note(resident.info, resident.ref, entries):
                _log.warning("recorded later sandbox=%s state=%s", resident.id, resident.info.state.value)
        except FirkinError as error:
            _log.error("not recorded sandbox=%s state=%s error=%s", resident.id, resident.info.state.value, error)
        for entry in entries:
            self._tell(entry)

    def begin_end(self, resident: Resident, *, why: Why, removes: bool) -> None:
        """Leave word that an end begins, and why, should this server not live to `note` it."""
        if why.end is not None:
            actor, detail = readable(why.actor)[:_LONGEST_WORD], readable(why.detail)[:_LONGEST_WORD]
            begun = BegunEnd(end=why.end, actor=actor, detail=detail, removes=removes)
            self._records.begun.begin(resident.id, begun)

    async def remark(self, resident: Resident, *, why: Why) -> None:
        """Keep the record, and in the journal what happened to a sandbox whose state stayed as it was."""
        state = resident.info.state
        entry = _entry(resident.id, self._clock.now(), state, state, why)
        await self._records.change(resident.info, resident.ref, (entry,))
        self._tell(entry)

    def jot(self, resident: Resident, *, why: Why) -> None:
        """As `remark`, for what happened around a sandbox while others may be at its record. Does not wait."""
        state = resident.info.state
        entry = _entry(resident.id, self._clock.now(), state, state, why)
        self._records.keep_entry(resident.info, entry)
        self._tell(entry)

    async def save(self, resident: Resident) -> None:
        """Keep what changed in the record without a change of state."""
        await self._records.change(resident.info, resident.ref, ())

    def _apply(self, resident: Resident, acts: tuple[Act, ...], why: Why) -> list[JournalEntry]:
        info, at = resident.info, self._clock.now()
        entries = []
        for act in acts:
            state = next_state(info.id, info.state, act)
            entries.append(_entry(info.id, at, info.state, state, why))
            info = replace(info, state=state)
        if why.end is not None and info.ended_at is None:
            info = replace(info, ended_at=at, end_cause=why.end, end_detail=readable(why.detail))
        resident.info = info
        return entries

    def _tell(self, entry: JournalEntry) -> None:
        self._logs.write(entry.sandbox_id, LogSource.RUNTIME, describe_change(entry), at=entry.at)
        self._events.publish(LifecycleChanged(entry.sandbox_id, entry.became, entry.cause))
        _log.info(
            "sandbox=%s state=%s cause=%r actor=%s", entry.sandbox_id, entry.became.value, entry.cause, entry.actor
        )


def _entry(sandbox_id: SandboxId, at: datetime, was: SandboxState, became: SandboxState, why: Why) -> JournalEntry:
    cause = readable(why.cause)  # it may tell what a guest or a file was called
    return JournalEntry(sandbox_id=sandbox_id, at=at, was=was.value, became=became, cause=cause, actor=why.actor)
