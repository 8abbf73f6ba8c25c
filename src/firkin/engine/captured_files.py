"""Captured files as one stream: what is hashed, exported and imported.

A driver fills a directory with a few large, sparse files. Their content is told
apart from how a file system happens to store it: each file is cut into blocks of
64 KiB, and only blocks that are not all zero count. The stream holds, for each
file in name order, a head and then one record for each such block:

    head    length of the name (u16), the name, size of the file in bytes (u64)
    record  number of the block, from 1 (u64), its bytes (64 KiB; the last block of a file may be shorter)
    end     eight zero bytes

All numbers are big-endian. The SHA-256 of the stream is the same wherever the
files are, and two directories with equal content have equal streams.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

from firkin.law.snapshots import SnapshotIntegrity

Pieces = Iterator[bytes]

BLOCK = 64 * 1024
MOST_FILES = 64
_ZEROS = bytes(BLOCK)
_END = bytes(8)
_NAME_BYTES = 255


def integrity(directory: Path) -> SnapshotIntegrity:
    """Digest of the stream and its size in bytes. Reads every allocated block: not for the event loop."""
    digest, size = hashlib.sha256(), 0
    for piece in stream(directory):
        digest.update(piece)
        size += len(piece)
    return SnapshotIntegrity(sha256=digest.hexdigest(), size_bytes=size)


def stream(directory: Path) -> Pieces:
    """The stream of all files of `directory`, in pieces of a few bytes or of one block."""
    for path in sorted(directory.iterdir()):
        name = path.name.encode()
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size
            yield struct.pack(">H", len(name)) + name + struct.pack(">Q", size)
            for number, block in _blocks(fd, size):
                yield struct.pack(">Q", number + 1)
                yield block
        finally:
            os.close(fd)
        yield _END


def _blocks(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    number, last = 0, -(-size // BLOCK)
    while number < last:
        start = _next_data(fd, number * BLOCK)
        if start is None:
            return
        number = max(number, start // BLOCK)
        end = os.lseek(fd, start, os.SEEK_HOLE)
        while number * BLOCK < end:
            block = os.pread(fd, BLOCK, number * BLOCK)
            if block != _ZEROS[: len(block)]:
                yield number, block
            number += 1


def _next_data(fd: int, offset: int) -> int | None:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


class StreamWriter:
    """Writes a stream that arrives in pieces back to files. `feed` raises `ValueError` for what is no such stream.

    What arrives is a stranger's: names are plain file names, sizes are within
    `most_bytes`, blocks come in order and inside their file.
    """

    def __init__(self, directory: Path, *, most_bytes: int) -> None:
        self._directory = directory
        self._most = most_bytes
        self._waiting = bytearray()
        self._parse = self._take(self._parsing())
        self.digest = hashlib.sha256()
        self.size = 0
        self.complete = False

    def feed(self, piece: bytes) -> None:
        self.digest.update(piece)
        self.size += len(piece)
        self._waiting += piece
        next(self._parse)

    def close(self) -> None:
        """Release what is open. The stream is whole when `complete` is true."""
        self._parse.close()

    def _take(self, parsing: Generator[int, None, None]) -> Generator[None, None, None]:
        """Run the parser as far as the bytes reach; it yields how many it needs next."""
        with closing(parsing):
            for needed in parsing:
                while len(self._waiting) < needed:
                    self.complete = needed == 2 and not self._waiting
                    yield None
            raise ValueError("the stream does not end")

    def _parsing(self) -> Generator[int, None, None]:
        names: set[str] = set()
        while True:
            yield 2
            (length,) = struct.unpack(">H", self._cut(2))
            if not 0 < length <= _NAME_BYTES or len(names) >= MOST_FILES:
                raise ValueError("a file's name is too long, or there are too many files")
            yield length + 8
            name, size = self._cut(length).decode(), struct.unpack(">Q", self._cut(8))[0]
            if name in names or name in (".", "..") or "/" in name or "\0" in name or size > self._most:
                raise ValueError("a file's name or size is not allowed")
            names.add(name)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(self._directory / name, flags, 0o600)
            try:
                os.ftruncate(fd, size)
                yield from self._file(fd, size)
                os.fsync(fd)
            finally:
                os.close(fd)

    def _file(self, fd: int, size: int) -> Generator[int, None, None]:
        before = 0
        while True:
            yield 8
            number = struct.unpack(">Q", self._cut(8))[0]
            if number == 0:
                return
            offset = (number - 1) * BLOCK
            if number <= before or offset >= size:
                raise ValueError("a block is out of order or outside its file")
            before = number
            length = min(BLOCK, size - offset)
            yield length
            os.pwrite(fd, self._cut(length), offset)

    def _cut(self, length: int) -> bytes:
        data = bytes(memoryview(self._waiting)[:length])
        del self._waiting[:length]
        return data
