"""How long work has to wait for a CPU or a disk, as a share of time.

The kernel's own account of waiting (PSI) where it keeps one; else, for CPUs
alone, what /proc/stat and the load say. Which it is is found out by reading.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


class StallGauge:
    """`proc` is where /proc is. None from either means that this kernel does not tell."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        cpu, io = (_pressure_of(proc / "pressure" / resource) for resource in ("cpu", "io"))
        self.tells_all = cpu is not None and io is not None
        self.cpu_pct = cpu or _BusyShare(proc).stall_pct
        self.io_pct = io or _unknown


def _unknown() -> float | None:
    return None


def _pressure_of(path: Path) -> Callable[[], float | None] | None:
    """A kernel that was started without PSI may have the file all the same, and refuse to have it read."""
    return None if _some_avg10(path) is None else lambda: _some_avg10(path)


def _some_avg10(path: Path) -> float | None:
    """Out of ``some avg10=1.23 avg60=… total=…``: the last ten seconds, in percent."""
    try:
        words = path.read_text().split()
    except OSError:
        return None
    if len(words) < 2 or words[0] != "some" or not words[1].startswith("avg10="):
        return None
    return float(words[1].removeprefix("avg10="))


class _BusyShare:
    """An estimate in place of PSI: the share of those who want a CPU and have none, while all CPUs are busy."""

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self._cpus = os.cpu_count() or 1
        self._before = (0, 0)

    def stall_pct(self) -> float | None:
        try:
            words = (self._proc / "stat").read_text().split("\n", 1)[0].split()
            load = float((self._proc / "loadavg").read_text().split()[0])
            ticks = [int(word) for word in words[1:9]]
            total, idle = sum(ticks), ticks[3] + ticks[4]
        except (OSError, IndexError, ValueError):
            return None
        (total_before, idle_before), self._before = self._before, (total, idle)
        passed = total - total_before
        busy = 1.0 - (idle - idle_before) / passed if passed > 0 else 0.0
        lacking = max(0.0, 1.0 - self._cpus / load) if load > 0 else 0.0
        return 100.0 * busy * lacking
