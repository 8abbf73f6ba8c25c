"""Whether the machine has what the settings say it must keep free, and whether its kernel tells of stalls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from firkin.cli.findings import Finding, found
from firkin.engine.admission import HostGauge
from firkin.engine.clock import SystemClock
from firkin.engine.stalls import StallGauge
from firkin.law.pressure import ReserveFloorPolicy
from firkin.law.resources import MIB
from firkin.settings import Settings


def floor_findings(settings: Settings) -> Iterator[Finding]:
    policies = settings.policies()
    gauge = HostGauge(_existing(settings.state_dir), SystemClock())
    room, total = gauge.read(), gauge.totals()
    floors = ReserveFloorPolicy(
        memory_bytes=policies.capacity.memory_floor_bytes,
        disk_bytes=policies.capacity.disk_floor_bytes,
        refill_memory_bytes=policies.pressure.refill_memory_bytes,
        refill_disk_bytes=policies.pressure.refill_disk_bytes,
    )
    yield _floor("memory", room.memory_bytes, floors.memory_bytes, floors.refill_memory(total.memory_bytes))
    yield _floor("disk", room.disk_bytes, floors.disk_bytes, floors.refill_disk(total.disk_bytes))
    told = StallGauge().tells_all
    yield found(
        "pressure",
        told,
        "the kernel tells how long work waits (PSI)" if told else "guessed from /proc/stat and the load",
        why="while CPUs or disks are overloaded nothing more is kept ready",
        mend="boot with psi=1",
    )


def _floor(what: str, free: int, floor: int, refill: int) -> Finding:
    return found(
        f"{what} floor",
        free >= refill,
        f"{free // MIB} MiB free; nothing is kept ready below {refill // MIB}, nothing begins below {floor // MIB}",
        why=f"the machine keeps some {what} for itself",
        mend=f"free some {what}, or lower {what}_floor_mb and refill_{what}_floor_mb",
    )


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())
