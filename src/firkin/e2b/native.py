"""Firkin's own routes, beside E2B's, under ``/firkin/v1``: templates, snapshots, volumes, events, webhooks, journals.

Whoever has an API key may list templates, use volumes of his own, and hear and
read what became of sandboxes of his own. Preparing and deleting templates reads and writes the machine
itself (a local folder can be a source), archives of snapshots are mounted by it and
webhooks tell of all tenants, so those want the operator's token as well. It is made
from the server's secret, which only the state folder's owner can read.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from firkin.e2b.auth import ApiKey
from firkin.e2b.error_map import as_refusal, missing_sandbox
from firkin.e2b.event_calls import NDJSON, EventFeed
from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.explanations import explain
from firkin.e2b.json_text import encode
from firkin.e2b.native_snapshots import NativeSnapshots
from firkin.e2b.native_volumes import NativeVolumes
from firkin.e2b.operators import OPERATOR_HEADER, operator_token
from firkin.e2b.webhook_calls import WebhookCalls
from firkin.law.backend import SandboxBackend
from firkin.law.errors import FirkinError, InvalidSpec, NotFound, TemplatePrepareFailure
from firkin.law.ids import SandboxId, TemplateId
from firkin.law.logs import LogFilter, LogSource
from firkin.law.templates import EnvdPlane, TemplateInfo, TemplateSpec, describe_source, parse_source
from firkin.lifetimes import children

PREFIX = "/firkin/v1/"
_MAX_BODY = 64 * 1024
_PROGRESS_EVERY_S = 0.25
_LINES_SHOWN = 20


class _NewTemplate(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /firkin/v1/templates``. `source` as `describe_source` writes it."""

    id: str
    source: str
    timeout_s: float = 600.0


class NativeRoutes:
    """Answers every path under `PREFIX`, for a caller whose API key has been checked."""

    def __init__(self, backend: SandboxBackend, secret: bytes) -> None:
        self._backend = backend
        self._operator = operator_token(secret)
        self._snapshots = NativeSnapshots(backend)
        self._volumes = NativeVolumes(backend)
        self._webhooks = WebhookCalls(backend)
        self._feed = EventFeed(backend)

    async def answer(self, exchange: Exchange, tenant: ApiKey) -> None:
        await self._dispatch(exchange, tenant, exchange.path.removeprefix(PREFIX).split("/"))

    async def _dispatch(self, exchange: Exchange, tenant: ApiKey, words: list[str]) -> None:
        match exchange.method, words:
            case "GET", ["info"]:
                await exchange.answer_json(200, await self._info())
            case "GET", ["templates"]:
                await exchange.answer_json(200, [template_json(info) for info in await self._backend.templates.list()])
            case "POST", ["templates"]:
                await self._prepare(exchange)
            case "DELETE", ["templates", template_id]:
                self._require_operator(exchange)
                await self._backend.templates.delete(TemplateId(template_id))
                await exchange.answer(204)
            case "GET", ["sandboxes", sandbox_id, "journal"]:
                await exchange.answer_json(
                    200, await self._journal(SandboxId(sandbox_id), self._whose(exchange, tenant))
                )
            case "GET", ["sandboxes", sandbox_id, "explain"]:
                await exchange.answer_json(200, await self._explain(sandbox_id, self._whose(exchange, tenant)))
            case "GET", ["events"]:
                await self._feed.answer(exchange, self._whose(exchange, tenant))
            case _, ["snapshots", *_]:
                self._require_operator(exchange)
                await self._snapshots.answer(exchange, words)
            case _, ["volumes", *_]:
                await self._volumes.answer(exchange, words, self._whose(exchange, tenant))
            case _, ["webhooks", *_]:
                self._require_operator(exchange)
                await self._webhooks.answer(exchange, words)
            case _:
                raise Refused(404, f"no route {exchange.method} {exchange.path[:200]}")

    def _whose(self, exchange: Exchange, tenant: ApiKey) -> str | None:
        """Whose sandboxes the caller may read about; None is everybody's."""
        return None if self._is_operator(exchange) else tenant.name

    def _is_operator(self, exchange: Exchange) -> bool:
        given = exchange.header(OPERATOR_HEADER.encode()) or b""
        return hmac.compare_digest(given, self._operator.encode())

    def _require_operator(self, exchange: Exchange) -> None:
        if not self._is_operator(exchange):
            raise Refused(403, "only the operator may do this: the state folder of the server must be readable")

    async def _info(self) -> dict[str, Any]:
        info = await self._backend.info()
        reasons = await self._backend.capabilities()
        return {
            "backend": str(info.name),
            "version": info.version,
            "driver": info.driver,
            "capabilities": {name.value: None if reason is None else str(reason) for name, reason in reasons},
        }

    async def _journal(self, sandbox_id: SandboxId, owner: str | None) -> dict[str, Any]:
        """What happened to a sandbox of `owner`; None is the operator, who also sees those that have ended."""
        ended = ""
        try:
            info = await self._backend.sandboxes.inspect(sandbox_id)
            if owner is not None and info.owner != owner:
                raise missing_sandbox(sandbox_id)
        except NotFound as error:
            if owner is not None or not error.detail:
                raise
            ended = error.detail
        if self._backend.logs is None:
            return {"ended": ended, "entries": []}
        entries = await self._backend.logs.list(LogFilter(sandbox_id=sandbox_id, source=LogSource.RUNTIME))
        rows = [{"timestamp": entry.observed_at.isoformat(), "message": entry.message} for entry in entries]
        return {"ended": ended, "entries": rows}

    async def _explain(self, text: str, owner: str | None) -> dict[str, Any]:
        """Unknown, forgotten and somebody else's read alike."""
        try:
            history = await self._backend.sandboxes.history(SandboxId(text))
        except (InvalidSpec, NotFound):
            raise missing_sandbox(text[:64]) from None
        if owner is not None and history.info.owner != owner:
            raise missing_sandbox(text[:64])
        logs = self._backend.logs
        wanted = LogFilter(sandbox_id=history.info.id, limit=_LINES_SHOWN)
        return explain(history, [] if logs is None else await logs.list(wanted))

    async def _prepare(self, exchange: Exchange) -> None:
        """One JSON object a line: ``progress`` while it goes on, at last ``template`` or ``error``."""
        self._require_operator(exchange)
        spec = await _read_spec(exchange)
        await exchange.start(200, [NDJSON])
        async for line in self._progress(spec):
            await exchange.write(encode(line) + b"\n")
        await exchange.write(b"", more=False)

    async def _progress(self, spec: TemplateSpec) -> AsyncIterator[dict[str, Any]]:
        began = datetime.now(UTC)
        shown = 0
        async with children() as tasks:
            work = tasks.start(_outcome(self._backend, spec), name="prepare template")
            while not work.done():
                messages = await self._messages(spec, began)
                for message in messages[shown:]:
                    yield {"progress": message}
                shown = max(shown, len(messages))
                yield {"elapsed_s": round((datetime.now(UTC) - began).total_seconds(), 1)}
                await asyncio.wait({work}, timeout=_PROGRESS_EVERY_S)
            yield work.result()

    async def _messages(self, spec: TemplateSpec, since: datetime) -> list[str]:
        """What the engine has said about this template since then."""
        if self._backend.logs is None:
            return []
        entries = await self._backend.logs.list(LogFilter(source=LogSource.BACKEND, since=since))
        return [entry.message for entry in entries if str(spec.id) in entry.message]


async def _outcome(backend: SandboxBackend, spec: TemplateSpec) -> dict[str, Any]:
    try:
        return {"template": template_json(await backend.templates.prepare(spec))}
    except FirkinError as error:
        fault = {"fault": error.fault.value} if isinstance(error, TemplatePrepareFailure) else {}
        return {"error": {"code": as_refusal(error).status, "message": str(error), **fault}}


async def _read_spec(exchange: Exchange) -> TemplateSpec:
    try:
        asked = msgspec.json.decode(await exchange.body(_MAX_BODY), type=_NewTemplate)
    except msgspec.DecodeError as error:
        raise Refused(400, f"the body is not a template: {error}") from None
    if not 0 < asked.timeout_s <= 86400:
        raise Refused(400, f"timeout_s is {asked.timeout_s:g}; it must be above 0 and at most 86400")
    source = parse_source(asked.source)
    return TemplateSpec(id=TemplateId(asked.id), source=source, data_plane=EnvdPlane(), timeout_s=asked.timeout_s)


def template_json(info: TemplateInfo) -> dict[str, Any]:
    return {
        "id": str(info.id),
        "state": info.state.value,
        "source": describe_source(info.source),
        "created_at": info.created_at.isoformat(),
        "prepared_at": None if info.prepared_at is None else info.prepared_at.isoformat(),
        "size_bytes": info.size_bytes,
        "digest": info.digest,
        "failure": info.failure,
        "user": info.config.user,
        "workdir": info.config.workdir,
    }
