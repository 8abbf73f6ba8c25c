"""What the engine has to say about each sandbox: bounded, in memory, oldest dropped.

After a restart the journal answers for what memory no longer holds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

from firkin.engine.clock import Clock
from firkin.engine.records import JournalEntry, Records
from firkin.law.ids import SandboxId
from firkin.law.logs import LogEntry, LogFilter, LogLevel, LogSource

ENTRIES_KEPT = 1000
SANDBOXES_KEPT = 256


class LogStore:
    """The `LogControl` of the engine, and where the rest of it writes. The runtime's own entries have no sandbox."""

    def __init__(self, clock: Clock, records: Records) -> None:
        self._clock = clock
        self._records = records
        self._began = clock.now()
        self._kept: OrderedDict[SandboxId | None, deque[LogEntry]] = OrderedDict()

    def write(
        self, sandbox_id: SandboxId | None, source: LogSource, message: str, level: LogLevel = LogLevel.INFO
    ) -> None:
        kept = self._kept.get(sandbox_id)
        if kept is None:
            kept = self._kept[sandbox_id] = deque(maxlen=ENTRIES_KEPT)
            if len(self._kept) > SANDBOXES_KEPT:
                self._kept.popitem(last=False)
        kept.append(
            LogEntry(sandbox_id=sandbox_id, source=source, level=level, message=message, observed_at=self._clock.now())
        )

    async def list(self, filter: LogFilter) -> Sequence[LogEntry]:
        chosen = [entry for entry in await self._candidates(filter.sandbox_id) if _matches(filter, entry)]
        return chosen[-filter.limit :] if filter.limit > 0 else []

    async def _candidates(self, sandbox_id: SandboxId | None) -> Iterable[LogEntry]:
        if sandbox_id is None:
            everything = (entry for kept in self._kept.values() for entry in kept)
            return sorted(everything, key=lambda entry: entry.observed_at)
        kept = list(self._kept.get(sandbox_id, ()))
        known_from = self._began if kept else None
        journal = await self._records.journal(sandbox_id, ENTRIES_KEPT)
        return [_from_journal(entry) for entry in journal if known_from is None or entry.at < known_from] + kept


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


def _matches(filter: LogFilter, entry: LogEntry) -> bool:
    return (
        entry.level >= filter.level
        and (filter.source is None or entry.source == filter.source)
        and (filter.since is None or entry.observed_at >= filter.since)
    )
