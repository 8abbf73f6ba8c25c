"""What the engine has to say about each sandbox: bounded, in memory, oldest dropped.

After a restart the journal answers for what memory no longer holds, and of a
sandbox that has ended the last entries are kept with its record. What programs do
has a bound of its own, so that a thousand commands do not push out why one ended.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter

from firkin.engine.clock import Clock
from firkin.engine.listeners import Listener, Listeners
from firkin.engine.records import JournalEntry, Records
from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.ids import SandboxId
from firkin.law.logs import LogEntry, LogFilter, LogLevel, LogSource

ENTRIES_KEPT = 1000
OF_PROGRAMS_KEPT = 600
ENDED_KEPT = 256
RECORDED = 50
_in_time = attrgetter("observed_at")


class _Kept:
    """The entries of one sandbox."""

    __slots__ = ("_of_programs", "_others")

    def __init__(self) -> None:
        self._of_programs: deque[LogEntry] = deque(maxlen=OF_PROGRAMS_KEPT)
        self._others: deque[LogEntry] = deque(maxlen=ENTRIES_KEPT - OF_PROGRAMS_KEPT)

    def add(self, entry: LogEntry) -> None:
        (self._of_programs if entry.source is LogSource.PROCESS else self._others).append(entry)

    def in_order(self) -> Sequence[LogEntry]:
        return sorted((*self._of_programs, *self._others), key=_in_time)


class LogStore:
    """The `LogControl` of the engine, and where the rest of it writes. The runtime's own entries have no sandbox."""

    def __init__(self, clock: Clock, records: Records) -> None:
        self._clock = clock
        self._records = records
        self._began = clock.now()
        self._kept: dict[SandboxId | None, _Kept] = {}
        self._ended: OrderedDict[SandboxId | None, _Kept] = OrderedDict()
        self._listeners: Listeners[LogEntry] = Listeners()

    def write(
        self,
        sandbox_id: SandboxId | None,
        source: LogSource,
        message: str,
        level: LogLevel = LogLevel.INFO,
        *,
        at: datetime | None = None,
    ) -> None:
        """`at`: when it happened, where that is written down elsewhere too and must be the same."""
        kept = self._of(sandbox_id)
        if kept is None:
            kept = self._kept[sandbox_id] = _Kept()
        when = at or self._clock.now()
        entry = LogEntry(sandbox_id=sandbox_id, source=source, level=level, message=message, observed_at=when)
        kept.add(entry)
        self._listeners.tell(entry)

    def _of(self, sandbox_id: SandboxId | None) -> _Kept | None:
        return self._kept.get(sandbox_id) or self._ended.get(sandbox_id)

    def retire(self, sandbox_id: SandboxId) -> None:
        """The sandbox is gone: its last entries are recorded, and all are kept until many others have ended too."""
        self.keep(sandbox_id)
        self._ended[sandbox_id] = self._kept.pop(sandbox_id, _Kept())
        if len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)

    def keep(self, sandbox_id: SandboxId) -> None:
        """Record the last entries of a sandbox that has ended; changes of its state are in the journal anyway."""
        kept = self._of(sandbox_id)
        lines = [] if kept is None else [one for one in kept.in_order() if one.source is not LogSource.RUNTIME]
        if lines:
            self._records.keep_lines(sandbox_id, lines[-RECORDED:])

    async def list(self, filter: LogFilter) -> Sequence[LogEntry]:
        chosen = [entry for entry in await self._candidates(filter.sandbox_id) if filter.matches(entry)]
        return chosen[-filter.limit :] if filter.limit > 0 else []

    async def stream(self, filter: LogFilter) -> Listener[LogEntry]:
        """See `LogControl.stream`. At most `ENTRIES_KEPT` wait for a reader, whatever the filter's limit."""
        if filter.limit < 1:
            detail = f"a stream of at most {filter.limit} entries says nothing; the limit must be above 0"
            raise InvalidSpec("stream logs", InvalidReason.INVALID_SETTINGS, detail)
        return self._listeners.add(filter.matches, most=min(filter.limit, ENTRIES_KEPT))

    def close(self) -> None:
        """End every stream."""
        self._listeners.close()

    async def _candidates(self, sandbox_id: SandboxId | None) -> Sequence[LogEntry]:
        if sandbox_id is None:
            groups = (self._kept, self._ended)
            return sorted((one for group in groups for kept in group.values() for one in kept.in_order()), key=_in_time)
        kept = self._of(sandbox_id)
        journal = [_from_journal(entry) for entry in await self._records.journal(sandbox_id, ENTRIES_KEPT)]
        if kept is None:
            recorded = (await self._records.remains(sandbox_id)).lines
            return sorted((*journal, *recorded), key=_in_time)
        return [*(entry for entry in journal if entry.observed_at < self._began), *kept.in_order()]


def describe_change(entry: JournalEntry) -> str:
    return f"{entry.became.value}: {entry.cause}"


def _from_journal(entry: JournalEntry) -> LogEntry:
    return LogEntry(
        sandbox_id=entry.sandbox_id,
        source=LogSource.RUNTIME,
        level=LogLevel.INFO,
        message=describe_change(entry),
        observed_at=entry.at,
    )
