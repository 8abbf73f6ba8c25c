"""What the engine has to say about each sandbox: bounded, in memory, oldest dropped.

After a restart the journal answers for what memory no longer holds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

from firkin.engine.clock import Clock
from firkin.engine.listeners import Listener, Listeners
from firkin.engine.records import JournalEntry, Records
from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.ids import SandboxId
from firkin.law.logs import LogEntry, LogFilter, LogLevel, LogSource

ENTRIES_KEPT = 1000
ENDED_KEPT = 256


class LogStore:
    """The `LogControl` of the engine, and where the rest of it writes. The runtime's own entries have no sandbox."""

    def __init__(self, clock: Clock, records: Records) -> None:
        self._clock = clock
        self._records = records
        self._began = clock.now()
        self._kept: dict[SandboxId | None, deque[LogEntry]] = {}
        self._ended: OrderedDict[SandboxId | None, deque[LogEntry]] = OrderedDict()
        self._listeners: Listeners[LogEntry] = Listeners()

    def write(
        self, sandbox_id: SandboxId | None, source: LogSource, message: str, level: LogLevel = LogLevel.INFO
    ) -> None:
        kept = self._of(sandbox_id)
        if kept is None:
            kept = self._kept[sandbox_id] = deque(maxlen=ENTRIES_KEPT)
        now = self._clock.now()
        entry = LogEntry(sandbox_id=sandbox_id, source=source, level=level, message=message, observed_at=now)
        kept.append(entry)
        self._listeners.tell(entry)

    def _of(self, sandbox_id: SandboxId | None) -> deque[LogEntry] | None:
        return self._kept.get(sandbox_id) or self._ended.get(sandbox_id)

    def retire(self, sandbox_id: SandboxId) -> None:
        """The sandbox is gone; its entries are kept until so many others have ended after it."""
        self._ended[sandbox_id] = self._kept.pop(sandbox_id, deque(maxlen=ENTRIES_KEPT))
        if len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)

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

    async def _candidates(self, sandbox_id: SandboxId | None) -> Iterable[LogEntry]:
        if sandbox_id is None:
            everything = (entry for group in (self._kept, self._ended) for kept in group.values() for entry in kept)
            return sorted(everything, key=lambda entry: entry.observed_at)
        kept = list(self._of(sandbox_id) or ())
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
