"""A machine's memory: where clones get theirs from, and how one that runs is written down.

A stored memory is put into a sealed memory file once and mapped by every clone
copy-on-write: no clone, and nobody who has broken out of one, can write to it,
because the seal forbids that whatever the descriptor's mode is (memfd_create(2)).

Writing down is the other way round. The pages that a machine has changed are
private to its process (/proc/PID/pagemap tells them from the file's), so the
process's memory is read from outside while the machine stands still; nothing
has to be streamed by QEMU.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from firkin.drivers.qemu.machines import FD_MEMORY
from firkin.drivers.qemu.process_reads import MOST_AT_ONCE, batches, read_into
from firkin.host.disks import copy_sparse
from firkin.host.file_marks import FileMark

PAGE = mmap.PAGESIZE  # of the host: 16 or 64 KiB with some kernels for arm64
NAME = "firkin-ram"
_PRESENT, _FILE = 62, 61  # bit 63: present, 62: swapped; 61: the file's page, or shared
_A_TIME = 512  # pages
_IDLE_S = 60.0
_MOST_VOUCHED = 64
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE

# PAGEMAP_SCAN (Linux 6.7, fs.h): ranges of pages by category, without reading eight bytes a page.
_PAGEMAP_SCAN = 0xC0606610
_IS_FILE, _IS_PRESENT, _IS_SWAPPED, _IS_PFNZERO = 1 << 2, 1 << 3, 1 << 4, 1 << 5
_SCAN = struct.Struct("=12Q")
_REGION = struct.Struct("=3Q")
_REGIONS = 1024


def empty_memory(size: int) -> int:
    """A sealed memory file of zeros, as a descriptor."""
    made = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(made, size)
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(made)
        raise
    return made


def load_memory(source: int, size: int) -> int:
    """A sealed memory file with the content of the (sparse) file `source`. Blocks: 30 ms for 100 MB."""
    made = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        copy_sparse(source, made, size)
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(made)
        raise
    return made


def unwritten(memory: int, size: int) -> int:
    """How many bytes of a memory file are holes.

    A machine that writes to one takes its page twice: the kernel first gives the file a page of zeros, which counts as
    the writer's and stays, and then copies it.
    """
    return max(0, size - os.fstat(memory).st_blocks * 512)


def woken_with(pid: int, size: int) -> int:
    """The sealed memory file that the process was started with: what it has not changed is there.

    Whoever is in that process could have put another file in its place, but nothing
    that blocks or changes: it is a file in memory, sealed, of that size.
    """
    base = os.open(f"/proc/{pid}/fd/{FD_MEMORY}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(base)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise OSError(errno.EINVAL, "the machine's memory is another than it was started with")
        if fcntl.fcntl(base, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise OSError(errno.EINVAL, "the machine's memory is not sealed")
    except BaseException:
        os.close(base)
        raise
    return base


def write_changes(pid: int, target: int, size: int) -> int:
    """Write the pages that the process `pid` has changed in its machine's memory into the file `target`.

    Returns how many bytes that were. The machine stands still. Raises `OSError`;
    `ProcessLookupError` when the process has no such memory. Blocks.
    """
    start, end = mapping(pid)
    if end - start != size:
        raise OSError(errno.EINVAL, f"the machine's memory is {end - start} bytes, not {size}")
    buffer = memoryview(bytearray(MOST_AT_ONCE))
    written = 0
    for ranges in batches(own_ranges(pid, [(start, end)])):
        read_into(buffer, pid, ranges)
        done = 0
        for first, last in ranges:
            size = last - first
            os.pwrite(target, buffer[done : done + size], first - start)
            done += size
        written += done
    return written


def mapping(pid: int) -> tuple[int, int]:
    """Where the memory file is in that process. One mapping, which may show as several lines."""
    found: list[tuple[int, int]] = []
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            if f"memfd:{NAME}" in line:
                first, _, last = line.split(None, 1)[0].partition("-")
                found.append((int(first, 16), int(last, 16)))
    if not found:
        raise ProcessLookupError(errno.ESRCH, "the machine's memory is not to be found")
    return min(first for first, _ in found), max(last for _, last in found)


def own_ranges(pid: int, stretches: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Within stretches of mapped addresses: ranges whose pages are the process's own, and no file's."""
    pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, end in stretches:
            try:
                yield from _scanned(pagemap, start, end)
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EINVAL):
                    raise
                yield from _read(pagemap, start, end)
    finally:
        os.close(pagemap)


def _scanned(pagemap: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Present or swapped, and neither the file's nor the page of zeros: inverses of these, and any of the two."""
    regions = ctypes.create_string_buffer(_REGION.size * _REGIONS)
    while start < end:
        request = bytearray(
            _SCAN.pack(
                _SCAN.size,
                0,
                start,
                end,
                0,
                ctypes.addressof(regions),
                _REGIONS,
                0,
                _IS_FILE | _IS_PFNZERO,
                _IS_FILE | _IS_PFNZERO,
                _IS_PRESENT | _IS_SWAPPED,
                0,
            )
        )
        count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, request, True)
        walked = _SCAN.unpack(request)[4]
        for number in range(count):
            first, last, _ = _REGION.unpack_from(regions, number * _REGION.size)
            yield first, last
        if walked <= start:
            return
        start = walked


def _read(pagemap: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """For kernels before 6.7: the word of each page."""
    begun = -1
    for first in range(start, end, PAGE * _A_TIME):
        count = min(_A_TIME, (end - first) // PAGE)
        said = os.pread(pagemap, count * 8, first // PAGE * 8)
        if begun < 0 and not any(said.strip(b"\0")):  # most of what is mapped was never touched
            continue
        words = array("Q")
        words.frombytes(said)
        for number, word in enumerate(words):
            changed = bool(word >> _PRESENT) and not word >> _FILE & 1
            if changed and begun < 0:
                begun = first + number * PAGE
            elif not changed and begun >= 0:
                yield begun, first + number * PAGE
                begun = -1
    if begun >= 0:
        yield begun, end


@dataclass(slots=True)
class _Loaded:
    fd: int
    used_at: float


@dataclass(frozen=True, slots=True)
class _Key:
    """One file with one content: neither an inode that is given again nor an altered file is taken for it."""

    mark: FileMark
    digest: str


class MemoryImages:
    """Stored memories that were loaded, by the file that they are stored in. Thread-safe; every call blocks."""

    def __init__(self, check: Callable[[Path, str], None]) -> None:
        """`check` raises when a stored memory has not the digest that its store names."""
        self._check = check
        self._loaded: dict[_Key, _Loaded] = {}
        self._lock = threading.Lock()
        self._loading: dict[_Key, threading.Lock] = {}
        self._vouched: deque[_Key] = deque(maxlen=_MOST_VOUCHED)

    def vouch(self, path: Path, digest: str) -> None:
        """The file `path` was read a moment ago and has that digest: it need not be again while it is the same file."""
        with suppress(OSError):
            key = _Key(FileMark.of(os.stat(path, follow_symlinks=False)), digest)
            with self._lock:
                self._vouched.append(key)

    def open(self, path: Path, size: int, digest: str) -> int:
        """A descriptor of the loaded memory of the file `path`, which has that `digest`; the caller closes it."""
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(source)
            if status.st_size != size:
                raise OSError(errno.EINVAL, f"the stored memory has {status.st_size} bytes, not {size}")
            key = _Key(FileMark.of(status), digest)
            with self._lock:
                loading = self._loading.setdefault(key, threading.Lock())
            with loading:
                with self._lock:
                    known, vouched = self._loaded.get(key), key in self._vouched
                if known is None:
                    if not vouched:
                        self._check(path, digest)
                    known = _Loaded(load_memory(source, size), time.monotonic())
                    with self._lock:
                        self._loaded[key] = known
                known.used_at = time.monotonic()
                return os.dup(known.fd)
        finally:
            os.close(source)

    def drop_idle(self, *, all_of_them: bool = False) -> None:
        """Let go of what nobody has wanted for a while; clones that run keep what they map."""
        now = time.monotonic()
        with self._lock:
            idle = [key for key, known in self._loaded.items() if all_of_them or now - known.used_at > _IDLE_S]
            for key in idle:
                with suppress(OSError):
                    os.close(self._loaded.pop(key).fd)
                self._loading.pop(key, None)
