"""The control plane's calls about volumes. Another tenant's volume and none at all read alike."""

from __future__ import annotations

import msgspec

from firkin.e2b.auth import ApiKey
from firkin.e2b.directory import SandboxDirectory
from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.models import Megabytes, parse
from firkin.e2b.settings import ServerSettings
from firkin.law.backend import SandboxBackend
from firkin.law.errors import AlreadyExists, InvalidSpec, NotFound
from firkin.law.ids import VolumeId, VolumeName
from firkin.law.resources import MIB
from firkin.law.volumes import VolumeControl, VolumeInfo, VolumeSpec


class NewVolume(msgspec.Struct, forbid_unknown_fields=True):
    """``POST /volumes``. `sizeMB` is Firkin's own; without it the operator's size holds."""

    name: str
    sizeMB: Megabytes | None = None


class VolumeCalls:
    """Each method answers one kind of request of one tenant; `path` holds the path's variable parts."""

    def __init__(self, directory: SandboxDirectory, settings: ServerSettings) -> None:
        self._backend = directory.backend
        self._mint = directory.mint
        self._settings = settings

    async def create(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        request = parse(await exchange.body(self._settings.max_json_bytes), NewVolume)
        size = None if request.sizeMB is None else request.sizeMB * MIB
        spec = VolumeSpec(name=VolumeName(request.name), owner=tenant.name, size_bytes=size)
        try:
            info = await volumes_of(self._backend).create(spec)
        except AlreadyExists as error:
            raise Refused(409, f"a volume called '{request.name}' already exists", should_retry=False) from error
        await exchange.answer_json(201, self._with_token(info))

    async def list(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        found = await volumes_of(self._backend).list(tenant.name)
        await exchange.answer_json(200, [{"volumeID": info.id, "name": info.name} for info in found])

    async def get(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        info = await owned_volume(self._backend, tenant.name, path[0])
        await exchange.answer_json(200, self._with_token(info))

    async def delete(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        info = await owned_volume(self._backend, tenant.name, path[0])
        try:
            await volumes_of(self._backend).delete(info.id)
        except NotFound as error:
            raise _missing(path[0]) from error
        await exchange.answer(204)

    def _with_token(self, info: VolumeInfo) -> dict[str, str]:
        return {"volumeID": info.id, "name": info.name, "token": self._mint.volume(info.id)}


def volumes_of(backend: SandboxBackend) -> VolumeControl:
    """Raises `Refused` (400) where there are none."""
    control = backend.volumes
    if control is None:
        raise Refused(400, "this server's driver keeps no volumes", should_retry=False)
    return control


async def owned_volume(backend: SandboxBackend, owner: str | None, text: str) -> VolumeInfo:
    """A volume of `owner`, or of anybody for None. Raises `Refused` (404)."""
    control = volumes_of(backend)
    try:
        info = await control.get(VolumeId(text))
    except (InvalidSpec, NotFound):
        raise _missing(text) from None
    if owner not in (None, info.owner):
        raise _missing(text)
    return info


def _missing(text: str) -> Refused:
    return Refused(404, f"volume '{text[:64]}' not found", should_retry=False)
