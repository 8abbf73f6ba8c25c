"""Volumes under ``/firkin/v1/volumes``: what E2B's calls do not tell, and folders in and out as tar streams.

E2B's content API moves one file at a time and cannot make a symlink. A tar keeps
modes, owners, times and links, and thousands of small files are one request.
"""

from __future__ import annotations

from typing import Any

from firkin.e2b.error_map import as_volume_refusal
from firkin.e2b.exchange import Exchange, Header, Refused
from firkin.e2b.volume_calls import owned_volume, volumes_of
from firkin.e2b.volume_content import close, entry_json
from firkin.law.backend import SandboxBackend
from firkin.law.errors import FirkinError
from firkin.law.volumes import VolumeControl, VolumeInfo, VolumePath

_TAR: Header = (b"content-type", b"application/x-tar")
_IDLE_S = 120.0


class NativeVolumes:
    """Answers for a tenant about his own volumes, and for the operator about all."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend

    async def answer(self, exchange: Exchange, words: list[str], owner: str | None) -> None:
        """`words` is what follows ``/firkin/v1/`` in the path; `owner` None is the operator."""
        control = volumes_of(self._backend)
        match exchange.method, words:
            case "GET", ["volumes"]:
                await exchange.answer_json(200, [volume_json(info) for info in await control.list(owner)])
            case "GET", ["volumes", volume_id]:
                info = await owned_volume(self._backend, owner, volume_id)
                await exchange.answer_json(200, await _described(control, info))
            case "DELETE", ["volumes", volume_id]:
                info = await owned_volume(self._backend, owner, volume_id)
                await control.delete(info.id)
                await exchange.answer(204)
            case "GET", ["volumes", volume_id, "entry"]:
                info = await owned_volume(self._backend, owner, volume_id)
                await exchange.answer_json(200, await _entry(control, info, _path(exchange)))
            case "GET", ["volumes", volume_id, "archive"]:
                info = await owned_volume(self._backend, owner, volume_id)
                await self._export(exchange, control, info)
            case "PUT", ["volumes", volume_id, "archive"]:
                info = await owned_volume(self._backend, owner, volume_id)
                await self._import(exchange, control, info)
            case _:
                raise Refused(404, f"no route {exchange.method} {exchange.path[:200]}")

    async def _export(self, exchange: Exchange, control: VolumeControl, info: VolumeInfo) -> None:
        """Chunked: an answer that ends without its last chunk has broken off."""
        try:
            pieces = await control.files.export_tar(info.id, _path(exchange))
        except FirkinError as error:
            raise as_volume_refusal(error) from error
        try:
            await exchange.start(200, [_TAR])
            async for piece in pieces:
                await exchange.write(piece)
            await exchange.write(b"", more=False)
        finally:
            await close(pieces)

    async def _import(self, exchange: Exchange, control: VolumeControl, info: VolumeInfo) -> None:
        try:
            count = await control.files.import_tar(info.id, _path(exchange), exchange.chunks(idle_s=_IDLE_S))
        except FirkinError as error:
            raise as_volume_refusal(error) from error
        await exchange.answer_json(200, {"entries": count})


def _path(exchange: Exchange) -> VolumePath:
    return VolumePath(exchange.query.get("path", "/"))


async def _entry(control: VolumeControl, info: VolumeInfo, path: VolumePath) -> dict[str, object]:
    try:
        return entry_json(await control.files.stat(info.id, path))
    except FirkinError as error:
        raise as_volume_refusal(error) from error


async def _described(control: VolumeControl, info: VolumeInfo) -> dict[str, Any]:
    usage = await control.usage(info.id)
    return {**volume_json(info), "total_bytes": usage.total_bytes, "used_bytes": usage.used_bytes}


def volume_json(info: VolumeInfo) -> dict[str, Any]:
    return {
        "id": str(info.id),
        "name": str(info.name),
        "owner": info.owner,
        "size_bytes": info.size_bytes,
        "created_at": info.created_at.isoformat(),
    }
