"""What /proc says of a process: its start time makes its id unique over reuse."""

from __future__ import annotations

import os
from collections.abc import Collection


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (clock ticks since boot), or None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rsplit(")", 1)[1].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def held_process(pid: int, started: int, members: Collection[int]) -> int | None:
    """A descriptor of that very process, if it lives, began at `started` and is one of `members`; else None."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    if start_time(pid) != started or pid not in members:
        os.close(pidfd)
        return None
    return pidfd
