"""The memory of a process, piece by piece, and a copy of what is its own in it.

What it shares with a file, a program or a library say, need not be copied. The rest goes into a memory file that is
sealed afterwards, so that none of those who map it can change it for the others.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from firkin.drivers.qemu.memory import own_ranges
from firkin.drivers.qemu.process_reads import read_into

_NAME = "firkin-qemu"
_CLOSE_TOGETHER = 16 << 10  # what lies no further apart is copied, and mapped, as one
MOST_BYTES = 320 << 20  # what the limits leave to QEMU itself, and some of a machine's
_MOST_PIECES = 4096
_SPARE = 4 << 20
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_LINE = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) ([r-])([w-])([x-])([ps]) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+) *([^\n]*)\n"
)
_MOST_LINE = 8192
_MOST_RANGES = 16384
_VOLATILE = frozenset((b"wf", b"dp"))

Range = tuple[int, int]


class Piece(NamedTuple):
    """One mapping. `protection` as for mmap(2); `file` is device and inode, (0, 0) for none."""

    start: int
    end: int
    protection: int
    shared: bool
    offset: int
    file: tuple[int, int]
    name: str

    @property
    def is_the_kernels(self) -> bool:
        """Given by the kernel to every process: clocks, and the code that reads them."""
        return self.name.startswith("[v")

    @property
    def is_content(self) -> bool:
        """Mapped from a `Content`, as what calls itself so."""
        return self.name.startswith(f"/memfd:{_NAME}")


def pieces(pid: int) -> list[Piece]:
    """In the order of their addresses. `OSError`, also for what no process of QEMU has."""
    found: list[Piece] = []
    with open(f"/proc/{pid}/maps", "rb") as file:
        for line in iter(lambda: file.readline(_MOST_LINE), b""):
            piece = _piece(line)
            if piece.name == "[vsyscall]":  # the kernel's own half
                continue
            found.append(piece)
            if len(found) > _MOST_PIECES:
                raise OSError(errno.E2BIG, "a process has more mappings than are expected")
    if not found:
        raise ProcessLookupError(errno.ESRCH, "the process has no memory")
    return found


def _piece(line: bytes) -> Piece:
    match = _LINE.fullmatch(line)
    if match is None:
        raise OSError(errno.EINVAL, "a mapping reads otherwise than is known")
    start, end, read, write, execute, kind, offset, major, minor, inode, name = match.groups()
    protection = (read == b"r") * mmap.PROT_READ | (write == b"w") * mmap.PROT_WRITE
    return Piece(
        start=int(start, 16),
        end=int(end, 16),
        protection=protection | (execute == b"x") * mmap.PROT_EXEC,
        shared=kind == b"s",
        offset=int(offset, 16),
        file=(os.makedev(int(major, 16), int(minor, 16)), int(inode)) if int(inode) else (0, 0),
        name=os.fsdecode(name),
    )


def volatile_starts(pid: int) -> frozenset[int]:
    """Where mappings begin whose content the kernel may drop, or wipes in forks: random numbers that are drawn once.

    Of Linux, filesystems/proc.rst, VmFlags. Takes milliseconds: all pages are counted for it.
    """
    found = set()
    start = 0
    with open(f"/proc/{pid}/smaps", "rb") as file:
        for line in iter(lambda: file.readline(_MOST_LINE), b""):
            if match := _LINE.fullmatch(line):
                start = int(match[1], 16)
            elif line.startswith(b"VmFlags:") and _VOLATILE & set(line.split()):
                found.add(start)
    return frozenset(found)


def own_parts(pid: int, some: Sequence[Piece]) -> Iterator[tuple[Piece, list[Range]]]:
    """Of each piece what is the process's own, in ranges that lie some way apart."""
    ranges = _few(own_ranges(pid, _stretches(some)))
    own = next(ranges, None)
    for piece in some:
        parts: list[Range] = []
        while own is not None and own[0] < piece.end:
            _add(parts, max(own[0], piece.start), min(own[1], piece.end))
            if own[1] > piece.end:  # goes on in the next one
                break
            own = next(ranges, None)
        yield piece, parts


def _few(ranges: Iterator[Range]) -> Iterator[Range]:
    size = 0
    for number, (start, end) in enumerate(ranges):
        size += end - start
        if number >= _MOST_RANGES or size > MOST_BYTES:
            raise OSError(errno.E2BIG, "a process has more memory of its own than is expected")
        yield start, end


def _stretches(some: Sequence[Piece]) -> Iterator[Range]:
    """Without gaps between mappings. To ask for each of them costs a call, to ask for gaps, before Linux 6.7, years."""
    start, end = some[0].start, some[0].end
    for piece in some[1:]:
        if piece.start != end:
            yield start, end
            start = piece.start
        end = piece.end
    yield start, end


def _add(ranges: list[Range], first: int, last: int) -> None:
    if ranges and first - ranges[-1][1] <= _CLOSE_TOGETHER:
        first = ranges.pop()[0]
    if first < last:
        ranges.append((first, last))


class Content:
    """A memory file for what is a process's own. Its room is made beforehand, while the process may still run."""

    def __init__(self, size: int) -> None:
        """`size` is about what it will take. `OSError`."""
        self._size = _required(size + _SPARE)
        self._filled = 0
        self.file = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.file, self._size)
            self._room = mmap.mmap(self.file, self._size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except BaseException:
            os.close(self.file)
            raise

    def copy(self, pid: int, ranges: Sequence[Range]) -> None:
        """Copy these ranges of the process's memory, one after the other; once. `OSError`."""
        size = sum(end - start for start, end in ranges)
        if size > self._size:
            self._grow(size)
        with memoryview(self._room) as place:
            read_into(place, pid, ranges)
        self._filled = size

    def _grow(self, size: int) -> None:
        self._size = _required(size)
        self._room.close()
        os.ftruncate(self.file, size)
        self._room = mmap.mmap(self.file, size, mmap.MAP_SHARED)

    def seal(self) -> int:
        """Nothing more is copied. How many bytes it has; the file is the caller's to close."""
        self._room.close()
        os.ftruncate(self.file, self._filled)
        seal(self.file)
        return self._filled

    def drop(self) -> None:
        """It is not wanted."""
        os.close(self.file)
        with suppress(BufferError):  # somebody looks at it yet; it goes with him
            self._room.close()


def seal(file: int) -> None:
    """From now on nobody can change that memory file, whom nobody has mapped to write to."""
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)


def is_sealed(file: int) -> bool:
    """Whether nobody can change that memory file any more."""
    return fcntl.fcntl(file, fcntl.F_GET_SEALS) & _SEALS == _SEALS


def _required(size: int) -> int:
    if size > MOST_BYTES:
        raise OSError(errno.E2BIG, "a process has more memory of its own than is expected")
    return size
