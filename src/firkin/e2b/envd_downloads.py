"""``GET /files``: a file's bytes, whole or in part, plain or gzip."""

from __future__ import annotations

import posixpath
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from firkin.e2b.byte_ranges import ByteRange, Conditions, Unsatisfiable, etag, http_date, read_ranges
from firkin.e2b.content_types import content_type
from firkin.e2b.encodings import accepts_gzip, gzipped
from firkin.e2b.error_map import as_file_refusal, is_gone
from firkin.e2b.exchange import Exchange, Header, Refused
from firkin.e2b.file_access import FileCaller
from firkin.law.backend import FilesystemControl
from firkin.law.errors import FileFault, FilesystemFailure, FirkinError
from firkin.law.files import FileEntry, ReadOptions, SandboxPath

_PLAIN_TEXT: Header = (b"content-type", b"text/plain; charset=utf-8")
_VARY: Header = (b"vary", b"Accept-Encoding")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """How the file is sent: `parts` of its plain bytes, or else all of it, plain or gzip."""

    gzip: bool = False
    parts: Sequence[ByteRange] = ()


class Download:
    """One answer to one ``GET`` or ``HEAD /files``."""

    def __init__(self, exchange: Exchange, files: FilesystemControl, caller: FileCaller) -> None:
        self._exchange = exchange
        self._files = files
        self._caller = caller
        self._path = caller.path(exchange.query.get("path", ""))
        self._gzip = accepts_gzip(exchange.text_header(b"accept-encoding"))

    async def answer(self) -> None:
        try:
            entry, body = await self._open(ReadOptions())
            form = await self._form(entry, body)
            if form is None:
                return
            if len(form.parts) > 1:
                await _close(body)
                await self._send_parts(entry, form.parts)
                return
            if form.parts and form.parts[0].length != entry.size_bytes:
                await _close(body)
                entry, body = await self._open_part(form.parts[0])
            await self._send(entry, body, form)
        except FirkinError as error:
            if self._exchange.started or is_gone(error):
                raise
            raise _refusal(error, self._path) from error

    async def _open(self, options: ReadOptions) -> tuple[FileEntry, AsyncIterator[bytes]]:
        return await self._files.open_read(self._caller.info.id, self._path, options)

    async def _open_part(self, part: ByteRange) -> tuple[FileEntry, AsyncIterator[bytes]]:
        return await self._open(ReadOptions(offset=part.offset, length=part.length))

    async def _form(self, entry: FileEntry, body: AsyncIterator[bytes]) -> _Form | None:
        """What to send; None when a condition or a bad range has been answered already."""
        size, modified = entry.size_bytes, entry.modified_at_ns
        conditions = _conditions(self._exchange)
        plain = etag(size, modified)
        wanted = self._exchange.text_header(b"range")
        ranged = bool(wanted) and conditions.range_holds(plain, modified)
        gzip = self._gzip and not ranged  # ranges count plain bytes
        tag = etag(size, modified, gzip=True) if gzip else plain
        status = 412 if conditions.failed(tag, modified) else 304 if conditions.unchanged(tag, modified) else 0
        if status:
            await _close(body)
            await self._exchange.answer(status, headers=[_VARY, *_validators(entry, tag)])
            return None
        try:
            return _Form(gzip=gzip, parts=read_ranges(wanted, size) if ranged else ())
        except Unsatisfiable as error:
            await _close(body)
            total = (b"content-range", b"bytes */%d" % size)
            await self._exchange.answer(416, str(error).encode(), [_PLAIN_TEXT, total])
            return None

    async def _send(self, entry: FileEntry, body: AsyncIterator[bytes], form: _Form) -> None:
        tag = etag(entry.size_bytes, entry.modified_at_ns, gzip=form.gzip)
        headers = [*self._headers(entry), *_validators(entry, tag)]
        part = form.parts[0] if form.parts else None
        if part is not None:
            headers.append((b"content-range", part.content_range(entry.size_bytes)))
        # A file of no known size (under /proc, say) is sent until it ends.
        length = None if form.gzip else (part.length if part else entry.size_bytes) or None
        if form.gzip:
            headers.append((b"content-encoding", b"gzip"))
        elif length:
            headers.append((b"content-length", b"%d" % length))
        try:
            await self._exchange.start(200 if part is None else 206, headers)
            if self._exchange.method != "HEAD":
                await self._copy(gzipped(body) if form.gzip else body, length)
            await self._exchange.write(b"", more=False)
        finally:
            await _close(body)

    async def _send_parts(self, entry: FileEntry, parts: Sequence[ByteRange]) -> None:
        """Several ranges, each behind a head of its own (``multipart/byteranges``)."""
        boundary = secrets.token_hex(16).encode()
        size, kind = entry.size_bytes, content_type(self._path).encode()
        heads = [
            b"\r\n--%s\r\nContent-Type: %s\r\nContent-Range: %s\r\n\r\n" % (boundary, kind, part.content_range(size))
            for part in parts
        ]
        heads[0] = heads[0].removeprefix(b"\r\n")
        end = b"\r\n--%s--\r\n" % boundary
        length = sum(map(len, heads)) + sum(part.length for part in parts) + len(end)
        plain = [header for header in self._headers(entry) if header[0] != b"content-type"]
        headers = [*plain, *_validators(entry, etag(size, entry.modified_at_ns))]
        headers.append((b"content-type", b"multipart/byteranges; boundary=" + boundary))
        await self._exchange.start(206, [*headers, (b"content-length", b"%d" % length)])
        if self._exchange.method != "HEAD":
            for head, part in zip(heads, parts, strict=True):
                await self._exchange.write(head)
                await self._send_part(entry, part)
            await self._exchange.write(end)
        await self._exchange.write(b"", more=False)

    async def _send_part(self, entry: FileEntry, part: ByteRange) -> None:
        found, body = await self._open_part(part)
        try:
            if (found.size_bytes, found.modified_at_ns) != (entry.size_bytes, entry.modified_at_ns):
                raise FilesystemFailure("read", FileFault.OTHER, "the file was changed while it was read")
            await self._copy(body, part.length)
        finally:
            await _close(body)

    async def _copy(self, body: AsyncIterator[bytes], length: int | None) -> None:
        """Send it all; a file that grew meanwhile is cut at the length that was promised."""
        left = length
        async for chunk in body:
            data = chunk if left is None else chunk[:left]
            if data:
                await self._exchange.write(data)
            if left is not None:
                left -= len(data)
                if left == 0:
                    return
        if left:
            raise FilesystemFailure("read", FileFault.OTHER, "the file became shorter while it was read")

    def _headers(self, entry: FileEntry) -> list[Header]:
        name = posixpath.basename(self._path)
        return [
            (b"content-type", content_type(self._path).encode()),
            (b"content-disposition", _disposition(name)),
            _VARY,
            (b"accept-ranges", b"bytes"),
        ]


def _validators(entry: FileEntry, tag: str) -> list[Header]:
    return [
        (b"last-modified", http_date(entry.modified_at_ns).encode()),
        (b"etag", tag.encode()),
    ]


def _disposition(name: str) -> bytes:
    quoted = quote(name.encode("utf-8", "surrogateescape"))
    if quoted == name:
        return b"inline; filename=" + name.encode()
    return b"inline; filename*=utf-8''" + quoted.encode()


def _conditions(exchange: Exchange) -> Conditions:
    return Conditions(
        if_match=exchange.text_header(b"if-match"),
        if_none_match=exchange.text_header(b"if-none-match"),
        if_modified_since=exchange.text_header(b"if-modified-since"),
        if_unmodified_since=exchange.text_header(b"if-unmodified-since"),
        if_range=exchange.text_header(b"if-range"),
    )


def _refusal(error: FirkinError, path: SandboxPath) -> Refused:
    if isinstance(error, FilesystemFailure) and error.fault is FileFault.IS_A_DIRECTORY:
        return Refused(400, f"path '{path}' is a directory")
    return as_file_refusal(error, path)


async def _close(body: AsyncIterator[bytes]) -> None:
    close = getattr(body, "aclose", None)
    if close is not None:
        await close()
