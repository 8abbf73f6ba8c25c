"""The control plane's calls that only look: metrics, logs and templates."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from firkin.e2b.auth import ApiKey
from firkin.e2b.descriptions import Describer, metric, timestamp
from firkin.e2b.directory import SandboxDirectory
from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.json_text import encode
from firkin.e2b.models import SandboxMetric, allow_query, query_int
from firkin.e2b.settings import ServerSettings
from firkin.law.errors import InvalidSpec, NotFound
from firkin.law.ids import SandboxId, TemplateId
from firkin.law.logs import LogEntry, LogFilter, LogLevel
from firkin.law.templates import TemplateInfo, TemplateState

_LEVELS = {"debug": LogLevel.DEBUG, "info": LogLevel.INFO, "warn": LogLevel.WARN, "error": LogLevel.ERROR}
_MAX_LOGS = 1000
_MAX_IDS = 100
_LATEST_S = 253402300799  # the end of the year 9999, the last that a datetime can hold


class ReportCalls:
    """Each method answers one kind of request; nothing here changes anything."""

    def __init__(self, directory: SandboxDirectory, settings: ServerSettings) -> None:
        self._directory = directory
        self._backend = directory.backend
        self._describe = Describer(settings, directory.mint)

    async def metrics(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """One fresh sample, if now is within ``start``…``end`` (Unix seconds): no history is kept."""
        allow_query(exchange, "start", "end")
        start = query_int(exchange, "start", default=0, least=0, most=_LATEST_S) or 0
        end = query_int(exchange, "end", default=_LATEST_S, least=0, most=_LATEST_S)
        if end is not None and end < start:
            raise Refused(400, "end must not be before start", should_retry=False)
        info = await self._directory.owned(tenant, path[0])
        sample = await self._sample(info.id)
        within = sample is not None and start <= sample.timestampUnix <= (end if end is not None else _LATEST_S)
        await exchange.answer_json(200, [sample] if within else [])

    async def all_metrics(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        allow_query(exchange, "sandbox_ids")
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
        sample = await self._sample(info.id)
        return None if sample is None else (info.id, sample)

    async def _sample(self, sandbox_id: SandboxId) -> SandboxMetric | None:
        metrics = self._backend.metrics
        return None if metrics is None else metric(await metrics.usage(sandbox_id))

    async def logs(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """v1: lines and entries, oldest first."""
        allow_query(exchange, "start", "limit")
        info = await self._directory.owned(tenant, path[0])
        entries = await self._entries(info.id, exchange, since="start")
        lines = [{"timestamp": timestamp(entry.observed_at), "line": _line(entry)} for entry in entries]
        await exchange.answer_json(200, {"logs": lines, "logEntries": [_entry(entry) for entry in entries]})

    async def logs_v2(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        allow_query(exchange, "cursor", "limit", "direction", "level", "search")
        direction = exchange.query.get("direction", "forward")
        if direction not in ("forward", "backward"):
            raise Refused(400, "direction must be forward or backward", should_retry=False)
        info = await self._directory.owned(tenant, path[0])
        entries = list(await self._entries(info.id, exchange, since="cursor", backward=direction == "backward"))
        wanted = exchange.query.get("search", "")
        found = [_entry(entry) for entry in entries if wanted in entry.message]
        await exchange.answer_json(200, {"logs": found})

    async def _entries(
        self, sandbox_id: SandboxId, exchange: Exchange, *, since: str, backward: bool = False
    ) -> Sequence[LogEntry]:
        limit = query_int(exchange, "limit", default=_MAX_LOGS, least=1, most=_MAX_LOGS) or _MAX_LOGS
        milliseconds = query_int(exchange, since, default=None, least=0, most=_LATEST_S * 1000)
        level = exchange.query.get("level", "debug")
        if level not in _LEVELS:
            raise Refused(400, "level must be debug, info, warn or error", should_retry=False)
        logs = self._backend.logs
        if logs is None:
            return []
        instant = None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
        wide = LogFilter(sandbox_id=sandbox_id, level=_LEVELS[level], since=None if backward else instant, limit=10_000)
        entries = await logs.list(wide)
        if not backward:
            return entries[:limit]
        return [entry for entry in reversed(entries) if instant is None or entry.observed_at <= instant][:limit]

    async def templates(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """Every tenant sees all templates, so ``teamID`` changes nothing."""
        allow_query(exchange, "teamID")
        found = [info for info in await self._backend.templates.list() if info.state is not TemplateState.DELETED]
        await exchange.answer_json(200, [self._describe.template(info) for info in found])

    async def template(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        info = await self._template(path[0])
        described = msgspec.to_builtins(self._describe.template(info))
        await exchange.answer_json(200, {**described, "builds": []})

    async def alias(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        info = await self._template(path[0])
        await exchange.answer_json(200, {"templateID": info.id, "public": True})

    async def delete_template(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        info = await self._template(path[0])
        message = f"template '{info.id}' belongs to the operator of this server: firkin template delete {info.id}"
        raise Refused(403, message, should_retry=False)

    async def _template(self, text: str) -> TemplateInfo:
        name, _, tag = text.partition(":")
        try:
            if tag in ("", "default"):
                return await self._backend.templates.get(TemplateId(name))
        except (InvalidSpec, NotFound):
            pass
        raise Refused(404, f"template '{text[:128]}' not found", should_retry=False)


def _entry(entry: LogEntry) -> dict[str, object]:
    return {
        "timestamp": timestamp(entry.observed_at),
        "message": entry.message,
        "level": _level(entry.level),
        "fields": {"source": entry.source.value},
    }


def _line(entry: LogEntry) -> str:
    """The command line tool of the SDK reads each line as JSON."""
    fields = {"timestamp": timestamp(entry.observed_at), "level": _level(entry.level), "message": entry.message}
    return encode(fields).decode()


def _level(level: LogLevel) -> str:
    return "debug" if level < LogLevel.INFO else level.name.lower()
