"""``/volumecontent``: the files of one volume, for whoever has the volume's token.

The token is made from the server's secret and the volume's id, so none is stored.
A wrong token, none and another volume's read alike. Errors have a word as their
code here, not a number.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec

from firkin.e2b.auth import presented_key
from firkin.e2b.descriptions import timestamp
from firkin.e2b.error_map import as_volume_refusal
from firkin.e2b.exchange import Exchange, Header, Refused
from firkin.e2b.long_answers import answer_pieces, encoded
from firkin.e2b.models import allow_query, parse, query_int
from firkin.e2b.signatures import TokenMint, equal
from firkin.e2b.volume_calls import volumes_of
from firkin.law.backend import SandboxBackend
from firkin.law.errors import FileFault, FilesystemFailure, FirkinError
from firkin.law.files import FileType
from firkin.law.ids import VolumeId
from firkin.law.volumes import VolumeAttributes, VolumeEntry, VolumeFiles, VolumePath

PREFIX = "/volumecontent/"
_IDLE_S = 120.0
_MOST = 2**31 - 1  # what is wrong with a value is said by the law, which knows why
_BYTES: Header = (b"content-type", b"application/octet-stream")
_WORDS = {400: "invalid_request", 401: "unauthorized", 404: "not_found", 405: "not_allowed", 408: "timeout"}
_FORCE = {"true": True, "1": True, "false": False, "0": False}


class Metadata(msgspec.Struct, forbid_unknown_fields=True):
    """``PATCH …/path``: what is left out stays as it is."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None


class VolumeContent:
    """Answers every path under `PREFIX`."""

    def __init__(self, backend: SandboxBackend, mint: TokenMint) -> None:
        self._backend = backend
        self._mint = mint

    async def answer(self, exchange: Exchange) -> None:
        """Raises `Refused`, with a word for its code."""
        try:
            await self._dispatch(exchange)
        except FirkinError as error:
            if exchange.started:
                raise
            raise as_volume_refusal(error) from error
        except Refused as refusal:
            word = _WORDS.get(refusal.status, "refused")
            raise Refused(
                refusal.status, refusal.message, should_retry=False, more={"code": word, **refusal.more}
            ) from refusal

    async def _dispatch(self, exchange: Exchange) -> None:
        text, _, place = exchange.path.removeprefix(PREFIX).partition("/")
        volume_id = self._admitted(exchange, text)
        files = volumes_of(self._backend).files
        match exchange.method, place:
            case "GET", "path":
                await self._stat(exchange, files, volume_id)
            case "PATCH", "path":
                await self._change(exchange, files, volume_id)
            case "DELETE", "path":
                await files.remove(volume_id, _path(exchange))
                await exchange.answer(204)
            case "GET", "dir":
                await self._list(exchange, files, volume_id)
            case "POST", "dir":
                await self._make_directory(exchange, files, volume_id)
            case "GET", "file":
                await self._download(exchange, files, volume_id)
            case "PUT", "file":
                await self._upload(exchange, files, volume_id)
            case _, "path" | "dir" | "file":
                raise Refused(405, f"{exchange.method} is not allowed here")
            case _:
                raise Refused(404, f"there is no {exchange.path[:128]!r} here")

    def _admitted(self, exchange: Exchange, text: str) -> VolumeId:
        presented = (presented_key(None, exchange.header(b"authorization")) or b"").decode("latin-1")
        if not equal(presented, self._mint.volume(text)):
            raise Refused(401, "the token is missing or is not this volume's")
        return VolumeId(text)

    async def _stat(self, exchange: Exchange, files: VolumeFiles, volume_id: VolumeId) -> None:
        path = _path(exchange)
        async with exchange.wanted():
            entry = await files.stat(volume_id, path)
        await exchange.answer_json(200, entry_json(entry))

    async def _change(self, exchange: Exchange, files: VolumeFiles, volume_id: VolumeId) -> None:
        path = _path(exchange)
        asked = parse(await exchange.body(4096), Metadata)
        wishes = VolumeAttributes(uid=asked.uid, gid=asked.gid, mode=asked.mode)
        await exchange.answer_json(200, entry_json(await files.change(volume_id, path, wishes)))

    async def _list(self, exchange: Exchange, files: VolumeFiles, volume_id: VolumeId) -> None:
        path = _path(exchange, "depth")
        depth = query_int(exchange, "depth", default=1, least=0, most=_MOST)
        async with exchange.wanted():
            found = await files.list(volume_id, path, depth=1 if depth is None else depth)
            pieces = await encoded(found, entry_json)
            del found
        await answer_pieces(exchange, pieces)

    async def _make_directory(self, exchange: Exchange, files: VolumeFiles, volume_id: VolumeId) -> None:
        path, wishes, force = _wanted(exchange)
        made = await files.make_directory(volume_id, path, wishes, force=force)
        await exchange.answer_json(201, entry_json(made))

    async def _upload(self, exchange: Exchange, files: VolumeFiles, volume_id: VolumeId) -> None:
        path, wishes, force = _wanted(exchange)
        body = exchange.chunks(idle_s=_IDLE_S)
        made = await files.write(volume_id, path, body, wishes, force=force)
        await exchange.answer_json(201, entry_json(made))

    async def _download(self, exchange: Exchange, files: VolumeFiles, volume_id: VolumeId) -> None:
        entry, body = await files.read(volume_id, _path(exchange))
        try:
            await exchange.start(200, [_BYTES, (b"content-length", b"%d" % entry.size_bytes)])
            async for piece in _exactly(entry.size_bytes, body):
                await exchange.write(piece)
            await exchange.write(b"", more=False)
        finally:
            await close(body)


async def _exactly(size: int, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """What was promised: a file that grew meanwhile is cut, one that shrank breaks the answer off."""
    left = size
    while left:
        piece = await anext(body, b"")
        if not piece:
            raise FilesystemFailure("read", FileFault.OTHER, "the file became shorter while it was read")
        yield piece[:left]
        left -= min(left, len(piece))


async def close(body: AsyncIterator[bytes]) -> None:
    aclose = getattr(body, "aclose", None)
    if aclose is not None:
        await aclose()


def entry_json(entry: VolumeEntry) -> dict[str, object]:
    described: dict[str, object] = {
        "name": entry.path.name,
        "type": "unknown" if entry.file_type is FileType.OTHER else entry.file_type.value,
        "path": str(entry.path),
        "size": entry.size_bytes,
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "atime": _time(entry.accessed_at_ns),
        "mtime": _time(entry.modified_at_ns),
        "ctime": _time(entry.changed_at_ns),
    }
    return described if entry.target is None else {**described, "target": entry.target}


def _time(ns: int) -> str:
    """A program inside may set any time; what no calendar knows reads as the epoch."""
    try:
        return timestamp(datetime.fromtimestamp(ns / 1e9, UTC))
    except (OverflowError, ValueError, OSError):
        return timestamp(datetime.fromtimestamp(0, UTC))


def _path(exchange: Exchange, *more: str) -> VolumePath:
    allow_query(exchange, "path", *more)
    text = exchange.query.get("path")
    if not text:
        raise Refused(400, "path is missing")
    return VolumePath(text)


def _wanted(exchange: Exchange) -> tuple[VolumePath, VolumeAttributes, bool]:
    path = _path(exchange, "uid", "gid", "mode", "force")
    uid, gid, mode = (query_int(exchange, name, default=None, least=0, most=_MOST) for name in ("uid", "gid", "mode"))
    force = _FORCE.get(exchange.query.get("force", "false").lower())
    if force is None:
        raise Refused(400, "force must be true or false")
    return path, VolumeAttributes(uid=uid, gid=gid, mode=mode), force
