"""The control plane's calls that only look: metrics, logs and templates."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from firkin.e2b.auth import ApiKey
from firkin.e2b.descriptions import Describer, metric, timestamp
from firkin.e2b.directory import SandboxDirectory
from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.json_text import encode
from firkin.e2b.models import SandboxMetric, query_int, query_word
from firkin.e2b.settings import ServerSettings
from firkin.law.errors import InvalidSpec, NotFound
from firkin.law.ids import SandboxId
from firkin.law.logs import LogEntry, LogFilter, LogLevel, LogSource

_LEVELS = {"debug": LogLevel.DEBUG, "info": LogLevel.INFO, "warn": LogLevel.WARN, "error": LogLevel.ERROR}
_LOGGERS = frozenset({LogSource.PROCESS, LogSource.FILESYSTEM})
_EPOCH = datetime.fromtimestamp(0, UTC)
_MAX_LOGS = 1000
_EVERY_LOG = 10_000
_MAX_IDS = 100
_LATEST_S = 253402300799  # the end of the year 9999, the last that a datetime can hold


class ReportCalls:
    """Each method answers one kind of request; nothing here changes anything."""

    def __init__(self, directory: SandboxDirectory, settings: ServerSettings) -> None:
        self._directory = directory
        self._backend = directory.backend
        self._describe = Describer(settings, directory.mint)

    async def metrics(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """The samples from ``start`` to ``end`` (Unix seconds, both included), oldest first; of a paused one too."""
        start = query_int(exchange, "start", default=None, least=0, most=_LATEST_S)
        end = query_int(exchange, "end", default=None, least=0, most=_LATEST_S)
        if start is not None and end is not None and end < start:
            raise Refused(400, "end must not be before start", should_retry=False)
        info = await self._directory.owned(tenant, path[0])
        metrics = self._backend.metrics
        found = [] if metrics is None else await metrics.history(info.id, _instant(start), _end_of_second(end))
        await exchange.answer_json(200, [metric(usage) for usage in found])

    async def all_metrics(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        ids = [text for text in exchange.query.get("sandbox_ids", "").split(",") if text]
        if not 1 <= len(ids) <= _MAX_IDS:
            raise Refused(400, f"sandbox_ids must name 1 to {_MAX_IDS} sandboxes, separated by ','", should_retry=False)
        samples = await asyncio.gather(*(self._own_sample(tenant, text) for text in dict.fromkeys(ids)))
        await exchange.answer_json(200, {"sandboxes": dict(pair for pair in samples if pair is not None)})

    async def _own_sample(self, tenant: ApiKey, text: str) -> tuple[str, SandboxMetric] | None:
        try:
            info = await self._directory.owned(tenant, text)
        except Refused:
            return None
        metrics = self._backend.metrics
        try:
            found = [] if metrics is None else await metrics.history(info.id)
        except NotFound:  # it has just ended
            return None
        return (info.id, metric(found[-1])) if found else None

    async def logs(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """v1: lines and entries, oldest first, from ``start`` (milliseconds) on."""
        sandbox_id = await self._known(tenant, path[0])
        start = _instant(query_int(exchange, "start", default=None, least=0, most=_LATEST_S * 1000), 1000)
        entries = (await self._entries(sandbox_id, LogLevel.DEBUG, since=start))[: _limit(exchange)]
        lines = [{"timestamp": timestamp(entry.observed_at), "line": _line(entry)} for entry in entries]
        await exchange.answer_json(200, {"logs": lines, "logEntries": [_entry(entry) for entry in entries]})

    async def logs_v2(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """From ``cursor`` (milliseconds, included) forward, or from it backward with the newest first."""
        direction = query_word(exchange, "direction", ("forward", "backward"), default="forward")
        level = query_word(exchange, "level", _LEVELS, default="debug")
        limit = _limit(exchange)
        sandbox_id = await self._known(tenant, path[0])
        cursor = query_int(exchange, "cursor", default=None, least=0, most=_LATEST_S * 1000)
        wanted = exchange.query.get("search", "")
        if direction == "forward":
            found = list(await self._entries(sandbox_id, _LEVELS[level], since=_instant(cursor, 1000)))
        else:
            until = None if cursor is None else (_instant(cursor, 1000) or _EPOCH) + timedelta(milliseconds=1)
            entries = await self._entries(sandbox_id, _LEVELS[level], since=None)
            found = [entry for entry in reversed(entries) if until is None or entry.observed_at < until]
        shown = [_entry(entry) for entry in found if wanted in entry.message][:limit]
        await exchange.answer_json(200, {"logs": shown})

    async def _known(self, tenant: ApiKey, text: str) -> SandboxId:
        """A sandbox of the tenant's, also one that has ended and is not forgotten."""
        try:
            return (await self._directory.owned(tenant, text)).id
        except Refused as missing:
            try:
                history = await self._backend.sandboxes.history(SandboxId(text.partition("-")[0]))
            except (InvalidSpec, NotFound):
                raise missing from None
            if history.info.owner != tenant.name:
                raise missing from None
            return history.info.id

    async def _entries(self, sandbox_id: SandboxId, level: LogLevel, *, since: datetime | None) -> Sequence[LogEntry]:
        logs = self._backend.logs
        wide = LogFilter(sandbox_id=sandbox_id, level=level, since=since, limit=_EVERY_LOG)
        return [] if logs is None else await logs.list(wide)


def _instant(count: int | None, a_second: int = 1) -> datetime | None:
    return None if count is None else datetime.fromtimestamp(count / a_second, UTC)


def _end_of_second(second: int | None) -> datetime | None:
    """Clients are told whole seconds, so a sample within the last one belongs to it."""
    return None if second is None else datetime.fromtimestamp(second, UTC).replace(microsecond=999_999)


def _limit(exchange: Exchange) -> int:
    return query_int(exchange, "limit", default=_MAX_LOGS, least=1, most=_MAX_LOGS) or _MAX_LOGS


def _entry(entry: LogEntry) -> dict[str, object]:
    return {
        "timestamp": timestamp(entry.observed_at),
        "message": entry.message,
        "level": _level(entry.level),
        "fields": {"source": entry.source.value},
    }


def _line(entry: LogEntry) -> str:
    """The command line tool of the SDK reads each line as JSON, and chooses by the names of its loggers."""
    fields = {
        "timestamp": timestamp(entry.observed_at),
        "level": _level(entry.level),
        "logger": entry.source.value if entry.source in _LOGGERS else "system",
        "message": entry.message,
    }
    return encode(fields).decode()


def _level(level: LogLevel) -> str:
    return "debug" if level < LogLevel.INFO else level.name.lower()
