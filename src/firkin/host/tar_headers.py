"""Headers of a stranger's tar archive, read within bounds.

The standard reader takes what a header claims: a sparse member of 2^60 bytes out of
a hundred, a member of 2^60 bytes that it skips long after the archive has ended,
extension headers without end, everything that one ever said of all that follow. Here
each of these is refused, or left out, before anything is made or read of it.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from typing import Any, NoReturn, Protocol, Self

MOST_EXTENSION = 1 << 20
MOST_EXTENSIONS = 16  # before one entry; a name, a link's and some records of its own are three
_MOST_RECORDS = 1000
_MOST_SEGMENTS = 250_000
_MOST_DIGITS = 8  # of a record's length: what it is part of has at most seven
_MOST_EMPTY = 16  # reads behind the end: a few belong to an archive without its closing zeros
_BLOCK = 512
_SPARSE = "GNU.sparse."
_GLOBAL = ("path", "linkpath", "size", "mtime", "uid", "gid", "uname", "gname")
_EXTENSIONS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)

Segments = list[tuple[int, int]]


def pax_records(data: bytes) -> list[tuple[str, str]]:
    """The records of an extension header, in their order. `ValueError` for a damaged one, and for too many."""
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at, at + _MOST_DIGITS + 1)
        digits = data[at : max(space, at)]
        end = at + int(digits) if digits.isdigit() else 0
        if not space + 2 < end <= len(data) or data[end - 1 : end] != b"\n":
            raise ValueError("an extension header is damaged")
        if len(found) == _MOST_RECORDS:
            raise ValueError(f"an extension header has more than {_MOST_RECORDS} records")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not key or not equals:
            raise ValueError("an extension header is damaged")
        found.append((_text(key), _text(value)))
        at = end
    return found


def says_sparse(key: str) -> bool:
    """Whether a record is about a member that has holes."""
    return key.startswith(_SPARSE)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


class Readable(Protocol):
    """What an archive is read from; it may answer with less than was asked for."""

    def read(self, size: int, /) -> bytes: ...


class BoundedArchive(tarfile.TarFile):
    """Open it with `read_archive`. `extensions`: how many headers in a row said something of the next entry."""

    extensions = 0
    sparse = True


class _NoHoles(BoundedArchive):
    sparse = False


def read_archive(stream: Readable, *, sparse: bool) -> tarfile.TarFile:
    """The archive in `stream`, for one pass. Unless `sparse`, a member with holes is an error."""
    kind = BoundedArchive if sparse else _NoHoles
    return kind.open(fileobj=_Blocks(stream), mode="r|", tarinfo=_Header)


class _Header(tarfile.TarInfo):
    """Where the standard reader takes garbage for the end, this is a `ReadError`, as is all that is refused."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as failure:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"not a tar header: {failure}") from failure

    def _proc_member(self, archive: BoundedArchive) -> tarfile.TarInfo:
        extends = self.type in _EXTENSIONS
        if self.size < 0 or (extends and self.size > MOST_EXTENSION):
            raise tarfile.ReadError(f"a header that claims {self.size} bytes")
        archive.extensions = archive.extensions + 1 if extends else 0
        if archive.extensions > MOST_EXTENSIONS:
            raise tarfile.ReadError(f"more than {MOST_EXTENSIONS} extension headers before one entry")
        if self.type == tarfile.GNUTYPE_SPARSE:
            _refuse_holes(self.name)
        try:
            made: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        except tarfile.HeaderError as failure:  # the standard reader would take it for the end
            raise tarfile.ReadError(f"not a tar header: {failure}") from failure
        return made

    def _proc_pax(self, archive: Any) -> tarfile.TarInfo:
        """As the standard reader does, but no more of a global header is kept than what it can say of every entry."""
        try:
            pairs = pax_records(archive.fileobj.read(self._block(self.size))[: self.size])  # type: ignore[attr-defined]
        except ValueError as failure:
            raise tarfile.ReadError(str(failure)) from failure
        if self.type == tarfile.XGLTYPE:
            archive.pax_headers.update(pair for pair in pairs if pair[0] in _GLOBAL)
            return self.fromtarfile(archive)
        holes = any(says_sparse(key) for key, _ in pairs)
        if holes and not archive.sparse:
            _refuse_holes(dict(pairs).get("GNU.sparse.name", ""))
        following = self.fromtarfile(archive)
        said = {**archive.pax_headers, **dict(pairs)}
        try:
            segments = _segments(pairs, following, archive.fileobj) if holes else None
            _applied(following, said, archive)
            if segments is not None:
                following.sparse = _checked(segments, following)  # type: ignore[assignment]  # what typeshed says of it is wrong
        except (ValueError, OverflowError) as failure:
            raise tarfile.ReadError(f"impossible value in an extension header: {str(failure)[:200]}") from failure
        following.offset = self.offset
        return following


def _refuse_holes(name: str) -> NoReturn:
    what = f"{name[:300]!r} is" if name else "it holds"
    raise tarfile.ReadError(f"{what} a sparse entry; make the archive without --sparse")


def _applied(following: Any, said: dict[str, str], archive: Any) -> None:
    """A size that a record says replaces the one by which the next header was to be found."""
    following._apply_pax_info(said, archive.encoding, archive.errors)
    if "size" in said:
        has_content = following.isreg() or following.type not in tarfile.SUPPORTED_TYPES
        archive.offset = following.offset_data + (following._block(following.size) if has_content else 0)


def _segments(pairs: list[tuple[str, str]], following: Any, stream: Readable) -> Segments | None:
    """Where a member with holes has content: GNU tar's formats 0.0, 0.1 and 1.0, whose map begins the content."""
    said = dict(pairs)
    if "GNU.sparse.map" in said:
        numbers = [int(number) for number in said["GNU.sparse.map"].split(",")]
        return list(zip(numbers[::2], numbers[1::2], strict=True))
    if "GNU.sparse.size" in said:
        offsets, lengths = (
            [int(value) for key, value in pairs if key == _SPARSE + word] for word in ("offset", "numbytes")
        )
        return list(zip(offsets, lengths, strict=True))
    if (said.get("GNU.sparse.major"), said.get("GNU.sparse.minor")) != ("1", "0"):
        return None
    taken, numbers = _map_before_content(stream, following.size)
    following.offset_data += taken
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _map_before_content(stream: Readable, size: int) -> tuple[int, list[int]]:
    """How many bytes it takes, and its numbers: one a line, in blocks, after how many pairs there are."""
    taken, rest, lines = 0, b"", list[bytes]()
    while not lines or len(lines) < 1 + 2 * _count(lines[0]):
        taken += _BLOCK
        if taken > size or not (block := stream.read(_BLOCK)):
            raise ValueError("the map of a sparse entry ends early")
        *more, rest = (rest + block).split(b"\n")
        if len(rest) > _BLOCK:
            raise ValueError("the map of a sparse entry is damaged")
        lines += more
    return taken, [int(line) for line in lines[1 : 1 + 2 * _count(lines[0])]]


def _count(line: bytes) -> int:
    if not 0 <= int(line) <= _MOST_SEGMENTS:
        raise ValueError(f"a sparse entry has at most {_MOST_SEGMENTS} pieces")
    return int(line)


def _checked(segments: Segments, entry: tarfile.TarInfo) -> Segments:
    """The standard reader looks for ever for what stands in none of them, and in no hole between."""
    end = 0
    for offset, length in segments:
        if offset < end or length < 0:
            raise ValueError("the pieces of a sparse entry overlap")
        end = offset + length
    if end > entry.size:
        raise ValueError("a piece of a sparse entry lies behind its end")
    return segments


class _Blocks(io.RawIOBase):
    """Gives the stream reader whole blocks: a pipe or a decompressor may answer with less.

    And ends it some reads behind the end: it would go on to whatever place a header names.
    """

    def __init__(self, stream: Readable) -> None:
        self._read: Callable[[int], bytes] = stream.read
        self._empty = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts = []
        while size > 0 and (chunk := self._read(size)):
            parts.append(chunk)
            size -= len(chunk)
        if not parts:
            self._empty += 1
            if self._empty > _MOST_EMPTY:
                raise EOFError("it ends in the middle of an entry")
        return b"".join(parts)
