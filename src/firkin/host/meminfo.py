"""The host's memory, by /proc/meminfo; see proc_meminfo(5)."""

from __future__ import annotations


def meminfo(name: str) -> int:
    """The figure of that name (``MemAvailable``), in bytes; 0 where the kernel tells none."""
    wanted = f"{name}:".encode()
    with open("/proc/meminfo", "rb") as lines:
        for line in lines:
            if line.startswith(wanted):
                return int(line.split()[1]) * 1024
    return 0
