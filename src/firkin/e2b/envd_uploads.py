"""``POST /files`` and ``/files/compose``: bytes into files, streamed all the way."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from firkin.e2b.directory import SandboxDirectory
from firkin.e2b.encodings import check_content_encoding, gunzipped
from firkin.e2b.error_map import as_file_refusal, is_gone
from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.file_access import FileCaller
from firkin.e2b.models import parse
from firkin.e2b.multipart import MultipartUpload
from firkin.law.backend import FilesystemControl
from firkin.law.errors import FilesystemFailure, FirkinError, NotFound
from firkin.law.files import FileEntry, ReadOptions, SandboxPath, WriteOptions
from firkin.law.sandboxes import SandboxInfo

_UPLOAD_IDLE_S = 120.0
_METADATA_PREFIX = b"x-metadata-"
_MAX_METADATA_KEY = 246
_MAX_METADATA_BYTES = 4096
_MAX_SOURCES = 1000


class Compose(msgspec.Struct):
    """Join `source_paths`, in order, into `destination`, and remove them."""

    source_paths: list[str]
    destination: str
    username: str | None = None


class Upload:
    """One upload request of one account."""

    def __init__(self, exchange: Exchange, files: FilesystemControl, caller: FileCaller) -> None:
        self._exchange = exchange
        self._files = files
        self._caller = caller
        self._metadata = read_metadata(exchange)
        self._written: dict[SandboxPath, FileEntry] = {}

    async def answer(self) -> None:
        gzip = check_content_encoding(self._exchange.text_header(b"content-encoding"))
        chunks = self._exchange.chunks(idle_s=_UPLOAD_IDLE_S)
        body = gunzipped(chunks) if gzip else chunks
        kind = (self._exchange.text_header(b"content-type") or "").strip()
        match kind.partition(";")[0].strip().lower():
            case "application/octet-stream":
                await self._take_bytes(body)
            case "multipart/form-data":
                await self._take_parts(MultipartUpload(body, kind))
            case _:
                message = "the content type must be multipart/form-data or application/octet-stream"
                raise Refused(400, message, should_retry=False)
        await self._exchange.answer_json(200, [_written(entry) for entry in self._written.values()])

    async def _take_bytes(self, body: AsyncIterator[bytes]) -> None:
        path = self._exchange.query.get("path")
        if not path:
            raise Refused(400, "path is required for an application/octet-stream upload", should_retry=False)
        await self._write(self._caller.path(path), body)

    async def _take_parts(self, upload: MultipartUpload) -> None:
        async for part in upload.parts():
            if part.name != "file":
                continue
            text = self._exchange.query.get("path") or part.filename
            if not text:
                raise Refused(400, "the part 'file' has no file name, and there is no path", should_retry=False)
            path = self._caller.path(text)
            if path in self._written:
                raise Refused(
                    400,
                    f"you cannot upload multiple files to the same path '{path}' in one upload request, "
                    "only the first specified file was uploaded",
                )
            await self._write(path, upload.body())

    async def _write(self, path: SandboxPath, body: AsyncIterator[bytes]) -> None:
        options = WriteOptions(user=self._caller.user.name, metadata=self._metadata)
        try:
            self._written[path] = await self._files.write(self._caller.info.id, path, body, options)
        except FirkinError as error:
            if is_gone(error):
                raise
            raise as_file_refusal(error, path) from error


def _written(entry: FileEntry) -> dict[str, object]:
    described: dict[str, object] = {"path": entry.path, "name": entry.name, "type": "file"}
    return {**described, "metadata": dict(entry.metadata)} if entry.metadata else described


def read_metadata(exchange: Exchange) -> dict[str, str]:
    """``X-Metadata-*`` headers. Each upload replaces all metadata. Raises `Refused` (400)."""
    found: dict[str, str] = {}
    for name, value in exchange.scope["headers"]:
        if name.startswith(_METADATA_PREFIX):
            key, text = name[len(_METADATA_PREFIX) :].decode("latin-1"), value.decode("latin-1")
            if not 0 < len(key) <= _MAX_METADATA_KEY or not _printable(key) or not _printable(text):
                rule = f"a key of 1 to {_MAX_METADATA_KEY} characters and a value, both printable ASCII"
                raise Refused(400, f"invalid metadata {key[:64]!r}: use {rule}", should_retry=False)
            found[key] = text
    if sum(len(key) + len(value) for key, value in found.items()) > _MAX_METADATA_BYTES:
        raise Refused(400, f"the metadata takes more than {_MAX_METADATA_BYTES} bytes", should_retry=False)
    return found


def _printable(text: str) -> bool:
    return text.isascii() and (text.isprintable() or not text)


async def compose(exchange: Exchange, files: FilesystemControl, directory: SandboxDirectory, info: SandboxInfo) -> None:
    """``POST /files/compose``. The sources are removed once the whole is written."""
    request = parse(await exchange.body(1024 * 1024), Compose)
    if not 1 <= len(request.source_paths) <= _MAX_SOURCES:
        raise Refused(400, f"source_paths must name 1 to {_MAX_SOURCES} files", should_retry=False)
    name = request.username or info.default_user
    path = request.destination
    try:
        caller = FileCaller(info, await directory.user(info, name))
        path = caller.path(request.destination)
        sources = [caller.path(text) for text in request.source_paths]
        if path in sources:
            raise Refused(400, "destination must not be one of source_paths", should_retry=False)
        exchange.commit()
        entry = await files.write(info.id, path, _joined(files, info, sources), WriteOptions(user=name, metadata={}))
        for source in dict.fromkeys(sources):
            await files.remove(info.id, source)
    except FirkinError as error:
        if is_gone(error):
            raise
        raise as_file_refusal(error, _path_of(error) or path) from error
    await exchange.answer_json(200, _written(entry))


def _path_of(error: FirkinError) -> str | None:
    """The path that a failure is about: one of the sources, or the destination."""
    if isinstance(error, FilesystemFailure):
        return error.path
    return str(error.id) if isinstance(error, NotFound) else None


async def _joined(files: FilesystemControl, info: SandboxInfo, sources: list[SandboxPath]) -> AsyncIterator[bytes]:
    for source in sources:
        _, body = await files.open_read(info.id, source, ReadOptions())
        async for chunk in body:
            yield chunk
