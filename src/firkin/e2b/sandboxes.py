"""The control plane's calls about sandboxes: create, connect, look, extend, end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from firkin.e2b.auth import ApiKey
from firkin.e2b.creation import Creator, check_timeout
from firkin.e2b.descriptions import Describer
from firkin.e2b.directory import VISIBLE, SandboxDirectory
from firkin.e2b.exchange import Exchange, Header, Refused
from firkin.e2b.listing import read_query, token_after
from firkin.e2b.models import (
    ConnectSandbox,
    NewSandbox,
    NewSandboxV1,
    ResumeSandbox,
    SandboxRefresh,
    SandboxTimeout,
    allow_query,
    parse,
)
from firkin.e2b.settings import ServerSettings
from firkin.law.sandboxes import At, AttachOptions, DeleteOptions, SandboxFilter, SandboxInfo, Timeout
from firkin.law.states import SandboxState

_CONNECT_DEFAULT_S = 300
_REFRESH_DEFAULT_S = 15
_FILTERS = ("metadata", "state", "order", "startedAfter", "template", "nextToken", "limit")


class SandboxCalls:
    """Each method answers one kind of request of one tenant; `path` holds the path's variable parts."""

    def __init__(
        self,
        directory: SandboxDirectory,
        settings: ServerSettings,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._directory = directory
        self._sandboxes = directory.backend.sandboxes
        self._settings = settings
        self._creator = Creator(directory, settings)
        self._describe = Describer(settings, directory.mint)
        self._now = now

    async def create(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        await self._create(exchange, tenant, NewSandbox)

    async def create_v1(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        await self._create(exchange, tenant, NewSandboxV1)

    async def _create(self, exchange: Exchange, tenant: ApiKey, kind: type[NewSandbox]) -> None:
        body = await exchange.body(self._settings.max_json_bytes)
        key = exchange.text_header(b"idempotency-key")
        info = await self._creator.create(tenant, parse(body, kind), body, key)
        await exchange.answer_json(201, self._describe.created(info))

    async def get(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        info = await self._directory.owned(tenant, path[0])
        await exchange.answer_json(200, self._describe.detail(info))

    async def kill(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        info = await self._directory.owned(tenant, path[0])
        await self._sandboxes.delete(info.id, DeleteOptions(force=True, delete_snapshots=True))
        self._directory.ended(info.id)
        await exchange.answer(204)

    async def list(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """``GET /v2/sandboxes``: one page."""
        allow_query(exchange, *_FILTERS)
        query = read_query(exchange, paged=True)
        everything = await self._sandboxes.list(SandboxFilter(owner=tenant.name, states=VISIBLE))
        found = query.select(everything)
        page = found[: query.limit]
        headers: list[Header] = []
        if len(found) > len(page):
            headers.append((b"x-next-token", token_after(page[-1]).encode()))
        if SandboxState.RUNNING in query.states:
            running = sum(info.state is SandboxState.RUNNING for info in everything)
            headers.append((b"x-total-running", b"%d" % running))
        await exchange.answer_json(200, [self._describe.listed(info) for info in page], headers)

    async def list_v1(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """``GET /sandboxes``: the running ones, all at once."""
        allow_query(exchange, "metadata", "state")
        query = read_query(exchange, paged=False)
        states = query.states if exchange.query.get("state") else frozenset({SandboxState.RUNNING})
        everything = await self._sandboxes.list(SandboxFilter(owner=tenant.name, states=states))
        await exchange.answer_json(200, [self._describe.listed(info) for info in query.select(everything)])

    async def connect(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """v2: the timeout may be left out."""
        request = parse(await exchange.body(self._settings.max_json_bytes) or b"{}", ConnectSandbox)
        await self._connect(exchange, tenant, path[0], request)

    async def connect_v1(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        request = parse(await exchange.body(self._settings.max_json_bytes), ConnectSandbox)
        if request.timeout is None:
            raise Refused(400, "timeout is missing: the seconds from now to the end", should_retry=False)
        await self._connect(exchange, tenant, path[0], request)

    async def resume(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        request = parse(await exchange.body(self._settings.max_json_bytes) or b"{}", ResumeSandbox)
        if request.autoPause:
            raise Refused(400, "autoPause is not supported by this server yet; leave it out", should_retry=False)
        await self._connect(exchange, tenant, path[0], ConnectSandbox(request.timeout, request.memory), running=201)

    async def _connect(
        self, exchange: Exchange, tenant: ApiKey, sandbox_id: str, request: ConnectSandbox, *, running: int = 200
    ) -> None:
        seconds = _CONNECT_DEFAULT_S if request.timeout is None else request.timeout
        check_timeout(seconds, self._settings, least=0)
        info = await self._directory.owned(tenant, sandbox_id)
        status = running
        if info.state is SandboxState.PAUSED:
            await self._resume(info, request)
            status = 201
        info = await self._sandboxes.attach(info.id, AttachOptions(require_running=True))
        info = await self._extend(info, seconds)
        await exchange.answer_json(status, self._describe.created(info))

    async def _resume(self, info: SandboxInfo, request: ConnectSandbox) -> None:
        pauses = self._directory.backend.pauses
        if pauses is None:
            raise Refused(400, "resume is not supported by this server yet", should_retry=False)
        if not request.memory:
            message = "memory=false is not supported by this server yet: a paused sandbox is resumed with its memory"
            raise Refused(400, message, should_retry=False)
        await pauses.resume(info.id)

    async def _extend(self, info: SandboxInfo, seconds: int) -> SandboxInfo:
        """Move the deadline later, never earlier."""
        wanted = self._now() + timedelta(seconds=seconds)
        if info.deadline_at is None or info.deadline_at >= wanted:
            return info
        return await self._sandboxes.update_deadline(info.id, At(wanted))

    async def set_timeout(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """From now, also earlier than before; 0 ends it at once."""
        request = parse(await exchange.body(self._settings.max_json_bytes), SandboxTimeout)
        check_timeout(request.timeout, self._settings, least=0)
        info = await self._directory.owned(tenant, path[0])
        if info.state is not SandboxState.RUNNING:
            raise Refused(409, f'Sandbox "{info.id}" is not running', should_retry=False)
        await self._sandboxes.update_deadline(info.id, Timeout(request.timeout))
        await exchange.answer(204)

    async def refresh(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """Keep it alive for `duration` more seconds from now, if that is later."""
        request = parse(await exchange.body(self._settings.max_json_bytes) or b"{}", SandboxRefresh)
        seconds = _REFRESH_DEFAULT_S if request.duration is None else request.duration
        check_timeout(seconds, self._settings, least=0)
        await self._extend(await self._directory.owned(tenant, path[0]), seconds)
        await exchange.answer(204)
