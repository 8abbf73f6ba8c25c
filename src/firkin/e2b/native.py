"""Firkin's own routes, beside E2B's, below ``/firkin/v1``: templates, snapshots, volumes, pools, events, journals.

Whoever has an API key may list templates, use volumes of his own, and hear and
read what became of sandboxes of his own. Preparing and deleting templates reads and writes the machine
itself (a local folder can be a source), archives of snapshots are mounted by it, pools
take its room and webhooks tell of all tenants, so those want the operator's token as well. It is made
from the server's secret, which only the state folder's owner can read.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from firkin.e2b.auth import ApiKey
from firkin.e2b.error_map import missing_sandbox
from firkin.e2b.event_calls import EventFeed
from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.explanations import explain
from firkin.e2b.isolation_reports import isolation_json, tier_json
from firkin.e2b.models import allow_query
from firkin.e2b.native_builds import NativeBuilds
from firkin.e2b.native_pools import NativePools
from firkin.e2b.native_snapshots import NativeSnapshots
from firkin.e2b.native_templates import NativeTemplates
from firkin.e2b.native_volumes import NativeVolumes
from firkin.e2b.network_reports import network_report
from firkin.e2b.node_calls import NodeCalls
from firkin.e2b.operators import OPERATOR_HEADER, operator_token
from firkin.e2b.traces import Traces
from firkin.e2b.webhook_calls import WebhookCalls
from firkin.law.backend import SandboxBackend
from firkin.law.errors import InvalidSpec, NotFound
from firkin.law.ids import SandboxId
from firkin.law.logs import LogFilter, LogSource
from firkin.law.sandboxes import SandboxInfo

PREFIX = "/firkin/v1/"
_LINES_SHOWN = 20
_OPERATORS = frozenset(("snapshots", "webhooks", "pools"))
_OPERATORS_TO_CHANGE = frozenset(("templates", "node"))


def _fields(method: str, words: list[str]) -> tuple[str, ...]:
    """The names of the query's fields that a route takes."""
    match method, words:
        case "GET", ["events"]:
            return ("after", "sandbox_id")
        case "PUT", ["snapshots", _, "archive"]:
            return ("name", "owner")
        case "GET" | "PUT", ["volumes", _, "entry" | "archive"]:
            return ("path",)
    return ()


class NativeRoutes:
    """Answers every path under `PREFIX`, for a caller whose API key has been checked."""

    def __init__(self, backend: SandboxBackend, secret: bytes, tenants: Collection[str], traces: Traces) -> None:
        self._backend = backend
        self._traces = traces
        self._operator = operator_token(secret)
        self._builds = NativeBuilds(backend)
        self._templates = NativeTemplates(backend)
        self._snapshots = NativeSnapshots(backend, tenants)
        self._volumes = NativeVolumes(backend)
        self._pools = NativePools(backend)
        self._webhooks = WebhookCalls(backend)
        self._feed = EventFeed(backend)
        self._nodes = NodeCalls(backend)
        self._facts: dict[str, Callable[[], Awaitable[Any]]] = {"info": self._info, "tiers": self._tiers}
        self._looks: dict[str, Callable[[str, str | None], Awaitable[dict[str, Any]]]] = {
            "journal": self._journal,
            "explain": self._explain,
            "network": self._network,
            "isolation": self._isolation,
        }

    async def answer(self, exchange: Exchange, tenant: ApiKey) -> None:
        await self._dispatch(exchange, tenant, exchange.path.removeprefix(PREFIX).split("/"))

    async def _dispatch(self, exchange: Exchange, tenant: ApiKey, words: list[str]) -> None:
        allow_query(exchange, *_fields(exchange.method, words))
        if words[0] in _OPERATORS or (words[0] in _OPERATORS_TO_CHANGE and exchange.method != "GET"):
            self._require_operator(exchange)
        match exchange.method, words:
            case "GET", [what] if what in self._facts:
                await exchange.answer_json(200, await self._facts[what]())
            case _, ["templates", *_]:
                await self._templates.answer(exchange, words, self._whose(exchange, tenant))
            case _, ["node", *_]:
                await self._nodes.answer(exchange, words)
            case "GET", ["sandboxes", sandbox_id, what] if what in self._looks:
                look = self._looks[what]
                await exchange.answer_json(200, await look(sandbox_id, self._whose(exchange, tenant)))
            case "GET", ["traces", trace_id]:
                await exchange.answer_json(200, self._traces.read(trace_id))
            case "GET", ["events"]:
                await self._feed.answer(exchange, self._whose(exchange, tenant))
            case _, ["builds", *_]:
                await self._builds.answer(exchange, tenant, words)
            case _, ["snapshots" | "webhooks" as what, *_]:
                await (self._snapshots if what == "snapshots" else self._webhooks).answer(exchange, words)
            case _, ["volumes", *_]:
                await self._volumes.answer(exchange, words, self._whose(exchange, tenant))
            case _, ["pools", *_]:
                await self._pools.answer(exchange, tenant, words)
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

    async def _tiers(self) -> list[dict[str, Any]]:
        return [tier_json(status) for status in await self._backend.tiers()]

    async def _journal(self, text: str, owner: str | None) -> dict[str, Any]:
        """What happened to a sandbox of `owner`; None is the operator, who also sees those that have ended."""
        sandbox_id = SandboxId(text)
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

    async def _network(self, text: str, owner: str | None) -> dict[str, Any]:
        info = await self._living(text, owner)
        return network_report(info, await self._backend.sandboxes.network(info.id))

    async def _isolation(self, text: str, owner: str | None) -> dict[str, Any]:
        info = await self._living(text, owner)
        return isolation_json(info, await self._backend.sandboxes.isolation(info.id))

    async def _living(self, text: str, owner: str | None) -> SandboxInfo:
        """Unknown, ended and somebody else's read alike."""
        try:
            info = await self._backend.sandboxes.inspect(SandboxId(text))
        except (InvalidSpec, NotFound):
            raise missing_sandbox(text[:64]) from None
        if owner is not None and info.owner != owner:
            raise missing_sandbox(text[:64])
        return info

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
