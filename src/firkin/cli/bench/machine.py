"""The machine that figures were taken on, and what it can be asked about its memory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    cpuinfo = _lines("/proc/cpuinfo")
    cpu = next((line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")), "unknown")
    release = os.uname()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "virtual": any(line.startswith("flags") and " hypervisor" in line for line in cpuinfo),
        "memory_mb": meminfo("MemTotal") // 1024,
        "kernel": release.release.partition("-")[0],  # without what whoever built it calls it
        "architecture": release.machine,
        "cgroups": 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1,
        "python": sys.version.split()[0],
        "load": os.getloadavg()[0],
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def describe(found: Mapping[str, Any]) -> str:
    """The machine in one line, without a name or a place."""
    kind = "a virtual machine" if found.get("virtual") else "a machine"
    return (
        f"{kind} with {found['cores']} cores ({found['cpu']}), {round(found['memory_mb'] / 1024)} GiB of memory, "
        f"Linux {found['kernel']}, control groups version {found.get('cgroups', '?')}, load {found['load']:.2f} "
        f"at the start"
    )


def meminfo(name: str) -> int:
    """A figure of /proc/meminfo, in KiB."""
    return next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith(f"{name}:")), 0)


def unused_kb() -> int:
    """Memory that programs can have, in KiB: MemAvailable, and the free pages that the kernel keeps ready for each
    processor, which it does not count there (/proc/zoneinfo, pagesets). Since Linux 6.7 those are up to an eighth of
    the memory after many processes have ended, and go back within minutes."""
    ahead, in_sets = 0, False
    for line in _lines("/proc/zoneinfo"):
        words = line.split()
        if words[:1] == ["pagesets"]:
            in_sets = True
        elif words[:1] == ["Node"]:
            in_sets = False
        elif in_sets and words[:1] == ["count:"]:
            ahead += int(words[1])
    return meminfo("MemAvailable") + ahead * os.sysconf("SC_PAGE_SIZE") // 1024


def resident_kb(pid: int) -> int:
    """Resident memory of a process, in KiB; 0 when it is gone."""
    return next((int(line.split()[1]) for line in _lines(f"/proc/{pid}/status") if line.startswith("VmRSS:")), 0)


def processor_s(pid: int | None) -> float:
    """Processor time that a process has used, in seconds; 0 when it is not known."""
    lines = [] if pid is None else _lines(f"/proc/{pid}/stat")
    if not lines:
        return 0.0
    fields = lines[0].rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []
