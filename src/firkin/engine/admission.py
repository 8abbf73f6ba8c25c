"""Whether the machine can take one more: limits on what was promised, floors on what is.

A reservation is taken at once, without waiting for anything, so that requests
that arrive together can never pass a limit together.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from firkin.engine.clock import Clock
from firkin.law.errors import CapacityRejected
from firkin.law.policies import Capacity
from firkin.law.resources import SandboxResources

SAMPLE_KEPT_S = 0.25
_CREATE = "create a sandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoom:
    """What the machine has left, in bytes."""

    memory_bytes: int
    disk_bytes: int


class HostGauge:
    """Free memory of the machine and free disk under the state directory, measured at most every 250 ms."""

    def __init__(self, state_dir: Path, clock: Clock) -> None:
        self._state_dir = state_dir
        self._clock = clock
        self._sample: HostRoom | None = None
        self._taken_at = 0.0

    def read(self) -> HostRoom:
        now = self._clock.monotonic()
        if self._sample is None or now - self._taken_at >= SAMPLE_KEPT_S:
            disk = os.statvfs(self._state_dir)
            self._sample = HostRoom(memory_bytes=_memory_available(), disk_bytes=disk.f_bavail * disk.f_frsize)
            self._taken_at = now
        return self._sample


def _memory_available() -> int:
    with open("/proc/meminfo", "rb") as lines:
        for line in lines:
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


@dataclass(slots=True, eq=False)
class Reservation:
    """Room promised to one sandbox. Giving it back twice gives it back once."""

    resources: SandboxResources
    _owner: Admission = field(repr=False)
    _held: bool = True

    def release(self) -> None:
        if self._held:
            self._held = False
            self._owner._give_back(self.resources)


class Admission:
    """The ledger of promises. `capacity` may be replaced; what was promised stands."""

    def __init__(self, capacity: Capacity, gauge: HostGauge) -> None:
        self.capacity = capacity
        self._gauge = gauge
        self.sandboxes = 0
        self.vcpus = 0
        self.memory_bytes = 0

    def reserve(self, resources: SandboxResources) -> Reservation:
        """Room for one sandbox, or `CapacityRejected` that names what is short."""
        capacity = self.capacity
        _limit("sandboxes", capacity.max_sandboxes, self.sandboxes, 1)
        _limit("vcpus", capacity.max_vcpus, self.vcpus, resources.vcpus)
        _limit("memory", capacity.max_memory_bytes, self.memory_bytes, resources.memory_bytes, "bytes")
        room = self._gauge.read()
        _floor("free memory on the host", capacity.memory_floor_bytes, room.memory_bytes)
        _floor("free disk on the host", capacity.disk_floor_bytes, room.disk_bytes)
        return self.hold(resources)

    def hold(self, resources: SandboxResources) -> Reservation:
        """Count a sandbox that lives already, whatever the limits say."""
        self.sandboxes += 1
        self.vcpus += resources.vcpus
        self.memory_bytes += resources.memory_bytes
        return Reservation(resources, self)

    def _give_back(self, resources: SandboxResources) -> None:
        self.sandboxes -= 1
        self.vcpus -= resources.vcpus
        self.memory_bytes -= resources.memory_bytes


def _limit(short: str, most: int | None, used: int, requested: int, unit: str = "") -> None:
    if most is not None and used + requested > most:
        raise CapacityRejected(_CREATE, short, requested=requested, available=max(0, most - used), unit=unit)


def _floor(short: str, floor: int, free: int) -> None:
    if free < floor:
        raise CapacityRejected(_CREATE, short, requested=floor, available=free, unit="bytes")
