"""Whether the machine can take one more: limits on what was promised, floors on what is.

A reservation is taken at once, without waiting for anything, so that requests
that arrive together can never pass a limit together.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from firkin.engine.clock import Clock
from firkin.host.meminfo import meminfo
from firkin.law.errors import CapacityRejected
from firkin.law.policies import Capacity
from firkin.law.resources import SandboxResources

SAMPLE_KEPT_S = 0.25
CREATE = "create a sandbox"
RESUME = "resume a sandbox"


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
            self._sample = HostRoom(memory_bytes=meminfo("MemAvailable"), disk_bytes=self.disk_now())
            self._taken_at = now
        return self._sample

    def disk_now(self) -> int:
        """Measured anew, for whoever fills the disk."""
        disk = os.statvfs(self._state_dir)
        return disk.f_bavail * disk.f_frsize

    def totals(self) -> HostRoom:
        """What the machine has in all, of the same two."""
        disk = os.statvfs(self._state_dir)
        return HostRoom(memory_bytes=meminfo("MemTotal"), disk_bytes=disk.f_blocks * disk.f_frsize)

    def forget(self) -> None:
        """Measure again when next asked."""
        self._sample = None


class Kind(StrEnum):
    """Who room is promised to: somebody's sandbox, or an entry of a pool that nobody has yet."""

    ACTIVE = "active"
    WARM = "warm"


@dataclass(slots=True, eq=False)
class Promised:
    """One column of the ledger."""

    sandboxes: int = 0
    vcpus: int = 0
    memory_bytes: int = 0


@dataclass(slots=True, eq=False)
class Reservation:
    """Room promised to one sandbox. Giving it back twice gives it back once."""

    sandboxes: int
    vcpus: int
    memory_bytes: int
    _owner: Admission = field(repr=False)
    kind: Kind = Kind.ACTIVE
    held: bool = True

    def release(self) -> None:
        self._owner.release(self)


class Admission:
    """The ledger of promises, in two columns. `capacity` may be replaced; what was promised stands.

    Limits are of both columns together, so that a pool never pushes the machine beyond them.
    `most_warm` bounds the warm column alone; `when_freed` is called whenever there may be more room.
    Floors count `margin` times: a machine that fell below one must rise above it by more than a hair.
    """

    def __init__(self, capacity: Capacity, gauge: HostGauge) -> None:
        self._capacity = capacity
        self._gauge = gauge
        self.columns = {kind: Promised() for kind in Kind}
        self.most_warm: int | None = None
        self.margin = 1.0
        self.when_freed: Callable[[], None] = lambda: None

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    @capacity.setter
    def capacity(self, capacity: Capacity) -> None:
        self._capacity = capacity
        self.when_freed()

    @property
    def sandboxes(self) -> int:
        return sum(column.sandboxes for column in self.columns.values())

    @property
    def vcpus(self) -> int:
        return sum(column.vcpus for column in self.columns.values())

    @property
    def memory_bytes(self) -> int:
        return sum(column.memory_bytes for column in self.columns.values())

    def reserve(self, resources: SandboxResources, kind: Kind = Kind.ACTIVE, *, operation: str = CREATE) -> Reservation:
        """Room for one sandbox, or `CapacityRejected` that names what is short."""
        capacity = self.capacity
        _limit("sandboxes", capacity.max_sandboxes, self.sandboxes, 1, operation=operation)
        _limit("vcpus", capacity.max_vcpus, self.vcpus, resources.vcpus, operation=operation)
        _limit("memory", capacity.max_memory_bytes, self.memory_bytes, resources.memory_bytes, operation=operation)
        if kind is Kind.WARM:
            self._check_spare()
        self.check_floors(operation)
        return self.hold(resources, kind)

    def oversize(self, resources: SandboxResources, operation: str) -> CapacityRejected | None:
        """What it asks too much of for a machine that is empty; None for a wish that could be granted one day."""
        try:
            _limit("vcpus", self.capacity.max_vcpus or None, 0, resources.vcpus, operation=operation)
            _limit("memory", self.capacity.max_memory_bytes or None, 0, resources.memory_bytes, operation=operation)
        except CapacityRejected as too_large:
            return too_large
        return None

    def look_again(self) -> None:
        """What was measured is out of date: something big has gone."""
        self._gauge.forget()

    def check_floors(self, operation: str) -> None:
        """`CapacityRejected` while the machine itself has less than it must keep free."""
        room, capacity = self._gauge.read(), self.capacity
        for short, floor, free in (
            ("free memory on the host", capacity.memory_floor_bytes, room.memory_bytes),
            ("free disk on the host", capacity.disk_floor_bytes, room.disk_bytes),
        ):
            _floor(short, math.ceil(floor * self.margin), free, operation)

    def _check_spare(self) -> None:
        """What is kept ready must never cost active work its room: whoever waits for some comes first."""
        if self.most_warm is not None:
            _limit("room to keep sandboxes ready", self.most_warm, self.columns[Kind.WARM].sandboxes, 1)

    def promote(self, reservation: Reservation, resources: SandboxResources | None = None) -> None:
        """What was promised to a warm entry is an active sandbox's from now on, without a moment in between.

        `resources` are those it is to have as such, where they differ. `CapacityRejected`
        when there is no room for what they are more, and then nothing has changed.
        """
        if not reservation.held or reservation.kind is not Kind.WARM:
            raise ValueError("only room that a warm entry holds can be promoted")
        vcpus, memory = reservation.vcpus, reservation.memory_bytes
        if resources is not None:
            vcpus, memory = resources.vcpus, resources.memory_bytes
            self._check_growth(reservation, resources)
        self._count(reservation, -1)
        reservation.kind, reservation.vcpus, reservation.memory_bytes = Kind.ACTIVE, vcpus, memory
        self._count(reservation, 1)

    def could_grow(self, reservation: Reservation, resources: SandboxResources) -> bool:
        """Whether there is room for what `resources` are more than what the reservation holds."""
        try:
            self._check_growth(reservation, resources)
        except CapacityRejected:
            return False
        return True

    def _check_growth(self, reservation: Reservation, resources: SandboxResources) -> None:
        vcpus, memory = resources.vcpus - reservation.vcpus, resources.memory_bytes - reservation.memory_bytes
        if vcpus > 0:
            _limit("vcpus", self.capacity.max_vcpus, self.vcpus, vcpus)
        if memory > 0:
            _limit("memory", self.capacity.max_memory_bytes, self.memory_bytes, memory)

    def reserve_again(self, resources: SandboxResources, held: Reservation) -> Reservation:
        """Room to run again for what `held` its memory; `CapacityRejected` leaves `held` as it is."""
        capacity = self.capacity
        _limit("sandboxes", capacity.max_sandboxes, self.sandboxes, 1, operation=RESUME)
        _limit("vcpus", capacity.max_vcpus, self.vcpus, resources.vcpus, operation=RESUME)
        self._give_back(held)  # nobody is told: what it held goes on being held
        return self.hold(resources)

    def hold(self, resources: SandboxResources, kind: Kind = Kind.ACTIVE) -> Reservation:
        """Count a sandbox that lives already, whatever the limits say."""
        return self._taken(Reservation(1, resources.vcpus, resources.memory_bytes, self, kind))

    def hold_memory(self, resources: SandboxResources) -> Reservation:
        """Count a frozen sandbox: it runs nothing, but what it had in memory is still there."""
        return self._taken(Reservation(0, 0, resources.memory_bytes, self))

    def _taken(self, reservation: Reservation) -> Reservation:
        self._count(reservation, 1)
        return reservation

    def release(self, reservation: Reservation) -> None:
        """See `Reservation.release`. Whoever waits for room is told."""
        if self._give_back(reservation):
            self.when_freed()

    def _give_back(self, reservation: Reservation) -> bool:
        held, reservation.held = reservation.held, False
        if held:
            self._count(reservation, -1)
        return held

    def _count(self, reservation: Reservation, sign: int) -> None:
        column = self.columns[reservation.kind]
        column.sandboxes += sign * reservation.sandboxes
        column.vcpus += sign * reservation.vcpus
        column.memory_bytes += sign * reservation.memory_bytes


def _limit(short: str, most: int | None, used: int, requested: int, *, operation: str = CREATE) -> None:
    if most is not None and used + requested > most:
        unit = "bytes" if short == "memory" else ""
        available = max(0, most - used)
        raise CapacityRejected(operation, short, requested=requested, available=available, unit=unit, limit=most)


def _floor(short: str, floor: int, free: int, operation: str) -> None:
    if free < floor:
        raise CapacityRejected(operation, short, requested=0, available=free, unit="bytes", limit=floor)
