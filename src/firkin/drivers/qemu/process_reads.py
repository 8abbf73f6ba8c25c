"""Reading the memory of another process, many ranges in one call: process_vm_readv(2).

/proc/PID/mem copies each page twice on its way, and takes a call for each range.
"""

from __future__ import annotations

import ctypes
import errno
import os
from array import array
from collections.abc import Iterable, Iterator

_MOST_RANGES = 1024  # UIO_MAXIOV
MOST_AT_ONCE = 8 << 20

Range = tuple[int, int]

_libc = ctypes.CDLL(None, use_errno=True)
_readv = _libc.process_vm_readv
_readv.restype = ctypes.c_ssize_t
_readv.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
]


def read_into(place: memoryview, pid: int, ranges: Iterable[Range]) -> None:
    """Fill the beginning of `place`, which can be written to, with these ranges, one after the other.

    Raises `OSError`: for a `place` that is too small, a process that is gone, or a range that cannot be read.
    """
    done = 0
    for batch in batches(ranges):
        size = sum(end - start for start, end in batch)
        with place[done : done + size] as part:
            if len(part) != size:
                raise OSError(errno.ENOSPC, "there is no room for all of a process's memory")
            _read(part, pid, batch)
        done += size


def batches(ranges: Iterable[Range]) -> Iterator[list[Range]]:
    """As many of them at a time as one call takes, none with more than `MOST_AT_ONCE` bytes; long ones in pieces."""
    batch: list[Range] = []
    room = MOST_AT_ONCE
    for first, last in ranges:
        start = first
        while start < last:
            if not room or len(batch) == _MOST_RANGES:
                yield batch
                batch, room = [], MOST_AT_ONCE
            size = min(room, last - start)
            batch.append((start, start + size))
            start, room = start + size, room - size
    if batch:
        yield batch


def _read(place: memoryview, pid: int, batch: list[Range]) -> None:
    words = array("Q")
    for start, end in batch:
        words.extend((start, end - start))
    own = ctypes.c_char.from_buffer(place)
    here = array("Q", (ctypes.addressof(own), len(place)))
    got = _readv(pid, here.buffer_info()[0], 1, words.buffer_info()[0], len(batch), 0)
    if got < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"process_vm_readv: {os.strerror(code)}")
    if got != len(place):
        raise OSError(errno.EFAULT, "the process's memory cannot be read")
