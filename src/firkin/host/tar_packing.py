"""A confined tree as a tar stream: modes, owners, times to the nanosecond, symlinks, hard links.

Devices, FIFOs and sockets are left out. The tree may change meanwhile, and be
hostile: what vanishes is left out, what shrinks while it is read ends the stream
with an error.
"""

from __future__ import annotations

import errno
import tarfile
from collections.abc import Generator, Iterator
from contextlib import suppress
from decimal import Decimal

from firkin.host.confined import ConfinedTree
from firkin.host.tree_files import entry_at, walk
from firkin.host.whole_files import FoundFile
from firkin.law.files import FileType
from firkin.law.volumes import VolumeEntry, VolumePath

_BLOCK = 512
_PIECE = 1 << 20
_MOST_REMEMBERED = 20_000
_DEEP = 4096


def packed(
    tree: ConfinedTree, path: VolumePath, *, name: str = "", owner: tuple[int, int] | None = None
) -> Generator[bytes, None, None]:
    """A tar of the directory's content, or of the one file, which is then called `name` or as it is.

    `owner` is said of everything in place of its own.
    """
    work = _Packing(tree, owner)
    entry = entry_at(tree, path)
    if entry.file_type is not FileType.DIRECTORY:
        yield from work.member(entry, name or path.name)
    else:
        yield work.header(entry, "./")
        start = len(path.rstrip("/")) + 1
        for found in walk(tree, path, depth=_DEEP):
            with suppress(FileNotFoundError):  # it was removed meanwhile
                yield from work.member(found, found.path[start:])
    yield bytes(2 * _BLOCK)


def next_piece(stream: Iterator[bytes]) -> bytes:
    """As much of `stream` as makes a large piece; nothing at its end."""
    gathered = bytearray()
    for part in stream:
        gathered += part
        if len(gathered) >= _PIECE:
            break
    return bytes(gathered)


class _Packing:
    """One archive on its way out, and the files that have several names in it."""

    def __init__(self, tree: ConfinedTree, owner: tuple[int, int] | None) -> None:
        self._tree = tree
        self._owner = owner
        self._links: dict[tuple[int, int], str] = {}

    def member(self, entry: VolumeEntry, name: str) -> Iterator[bytes]:
        if entry.file_type is FileType.FILE:
            yield from self._file(entry, name)
        elif entry.file_type is not FileType.OTHER:
            yield self.header(entry, name)

    def _file(self, entry: VolumeEntry, name: str) -> Iterator[bytes]:
        file = FoundFile(self._tree, entry.path, follow=False)
        try:
            earlier = self._links.get(file.identity) if file.has_other_names else None
            if earlier is not None:
                yield self.header(file.entry, name, linked_to=earlier)
                return
            if file.has_other_names and len(self._links) < _MOST_REMEMBERED:
                self._links[file.identity] = name
            yield self.header(file.entry, name)
            yield from _content(file)
        finally:
            file.close()

    def header(self, entry: VolumeEntry, name: str, *, linked_to: str = "") -> bytes:
        info = tarfile.TarInfo(name)
        info.mode = entry.mode
        info.uid, info.gid = self._owner or (entry.uid, entry.gid)
        info.pax_headers = {"mtime": format(Decimal(entry.modified_at_ns).scaleb(-9), "f")}  # to the nanosecond
        if linked_to:
            info.type, info.linkname = tarfile.LNKTYPE, linked_to
        elif entry.file_type is FileType.SYMLINK:
            info.type, info.linkname = tarfile.SYMTYPE, entry.target or ""
        elif entry.file_type is FileType.DIRECTORY:
            info.type = tarfile.DIRTYPE
        else:
            info.size = entry.size_bytes
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _content(file: FoundFile) -> Iterator[bytes]:
    left = file.entry.size_bytes
    while left:
        piece = file.read(min(left, _PIECE))
        if not piece:
            raise OSError(errno.EIO, "the file became shorter while it was read", file.entry.path)
        left -= len(piece)
        yield piece
    yield bytes(-file.entry.size_bytes % _BLOCK)
