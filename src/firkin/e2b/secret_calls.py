"""The control plane's calls about secrets. A value comes in and no answer has one; another tenant's reads as none."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar

import msgspec

from firkin.e2b.auth import ApiKey
from firkin.e2b.directory import SandboxDirectory
from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.models import parse
from firkin.e2b.pages_of import page, read_page
from firkin.e2b.settings import ServerSettings
from firkin.law.errors import AlreadyExists, NotFound
from firkin.law.ids import SecretName
from firkin.law.secrets import SecretControl, SecretInfo, SecretSpec

T = TypeVar("T")


class NewSecret(msgspec.Struct, forbid_unknown_fields=True):
    """``POST /secrets``."""

    name: str
    value: str
    metadata: dict[str, str] | None = None


class SecretUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """``POST /secrets/{id or name}``. Metadata replaces what there is, unless it is left out."""

    value: str
    metadata: dict[str, str] | None = None


class SecretCalls:
    """Each method answers one kind of request of one tenant; `path` holds the path's variable parts."""

    def __init__(self, directory: SandboxDirectory, settings: ServerSettings) -> None:
        self._backend = directory.backend
        self._settings = settings

    async def create(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        request = parse(await exchange.body(self._settings.max_json_bytes), NewSecret)
        name = SecretName(request.name)
        spec = SecretSpec(name=name, value=request.value, owner=tenant.name, metadata=request.metadata or {})
        try:
            info = await self._secrets().create(spec)
        except AlreadyExists as error:
            raise Refused(409, f"a secret called '{name}' already exists", should_retry=False) from error
        await exchange.answer_json(201, secret_json(info))

    async def list(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        after, limit = read_page(exchange)
        found = [((info.created_at, str(info.id)), info) for info in await self._secrets().list(tenant.name)]
        shown, headers = page(found, after=after, limit=limit)
        await exchange.answer_json(200, [secret_json(info) for info in shown], headers)

    async def get(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        info = await _found(path[0], self._secrets().get(tenant.name, path[0]))
        await exchange.answer_json(200, secret_json(info))

    async def update(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        request = parse(await exchange.body(self._settings.max_json_bytes), SecretUpdate)
        changed = self._secrets().update(tenant.name, path[0], request.value, request.metadata)
        await exchange.answer_json(200, secret_json(await _found(path[0], changed)))

    async def delete(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        await _found(path[0], self._secrets().delete(tenant.name, path[0]))
        await exchange.answer(204)

    def _secrets(self) -> SecretControl:
        control = self._backend.secrets
        if control is None:
            raise Refused(400, "this server keeps no secrets", should_retry=False)
        return control


async def _found(text: str, work: Awaitable[T]) -> T:
    """What `work` brings. Raises `Refused` (404)."""
    try:
        return await work
    except NotFound as error:
        raise Refused(404, f"secret '{text[:128]}' not found", should_retry=False) from error


def secret_json(info: SecretInfo) -> dict[str, Any]:
    return {
        "secretID": info.id,
        "name": info.name,
        "currentVersion": info.version,
        "metadata": dict(info.metadata),
        "createdAt": info.created_at.isoformat(),
        "updatedAt": info.updated_at.isoformat(),
    }
