"""How fast this host's time stamp counter counts, which an emulated machine counts its time with.

The kernel tells the frequency of a processor, which is another number wherever it
changes with load. So the counter is read twice, with the instruction itself, beside
the clock.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable

_READ = bytes.fromhex("0f3148c1e2204809d0c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
_NEEDED = {"constant_tsc", "nonstop_tsc"}
_CLOCK = time.CLOCK_MONOTONIC_RAW  # the usual one runs faster or slower while it is being set right
_SPAN_S = 0.1
_TRIES = 50
_CLOSE_NS = 3_000  # between two looks at the clock with one at the counter in between: undisturbed


def counter_khz() -> int:
    """Within some 0.003 %; 0 where there is none, or none that counts evenly. Blocks for a tenth of a second."""
    if os.uname().machine != "x86_64" or not _flags() >= _NEEDED:
        return 0
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a host that forbids memory which is both written and run
        return 0
    code.write(_READ)
    place = ctypes.c_char.from_buffer(code)
    count = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place))
    first_ns, first = _both(count)
    time.sleep(_SPAN_S)
    last_ns, last = _both(count)
    return round((last - first) * 1_000_000 / (last_ns - first_ns))


def _both(count: Callable[[], int]) -> tuple[int, int]:
    """The time and what the counter stood at then: of several tries, that with the least in between."""
    best = (1 << 63, 0, 0)
    for _ in range(_TRIES):
        before = time.clock_gettime_ns(_CLOCK)
        counted = count()
        took = time.clock_gettime_ns(_CLOCK) - before
        best = min(best, (took, before + took // 2, counted))
        if took < _CLOSE_NS:
            break
    return best[1], best[2]


def _flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("flags"):
                    return set(line.split())
    except OSError:
        pass
    return set()
