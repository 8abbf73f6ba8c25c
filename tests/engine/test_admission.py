"""Limits on promises, floors on the machine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from firkin.engine.admission import Admission, HostGauge, HostRoom, Kind
from firkin.engine.clock import SystemClock
from firkin.engine.spare import SpareRoom
from firkin.law.errors import CapacityRejected
from firkin.law.policies import Capacity, Policies
from firkin.law.resources import GIB, MIB, SandboxResources
from firkin.law.sandboxes import DeleteOptions, SandboxFilter
from firkin.testing.virtual_clock import VirtualClock
from tests.engine.conftest import SPEC, engine_over


class Gauge(HostGauge):
    """A machine of a chosen size."""

    def __init__(self, memory_bytes: int = 64 * GIB, disk_bytes: int = 64 * GIB) -> None:
        super().__init__(Path("/"), SystemClock())
        self.room = HostRoom(memory_bytes=memory_bytes, disk_bytes=disk_bytes)

    def read(self) -> HostRoom:
        return self.room


@pytest.mark.thorough
async def test_two_hundred_parallel_creates_at_a_limit_of_a_hundred_give_exactly_a_hundred(tmp_path: Path) -> None:
    limit = Capacity(max_sandboxes=100, memory_floor_bytes=0, disk_floor_bytes=0)
    async with engine_over(tmp_path / "state", policies=Policies(capacity=limit)) as engine:
        asked = (engine.backend.sandboxes.create(SPEC) for _ in range(200))
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, CapacityRejected)]
        assert len(refused) == 100
        assert {(error.short, error.requested, error.available) for error in refused} == {("sandboxes", 1, 0)}
        assert len(await engine.backend.sandboxes.list(SandboxFilter())) == 100
        assert len(await engine.driver.live()) == 100


async def test_room_comes_back_when_a_sandbox_is_deleted(tmp_path: Path) -> None:
    limit = Capacity(max_sandboxes=1, memory_floor_bytes=0, disk_floor_bytes=0)
    async with engine_over(tmp_path / "state", policies=Policies(capacity=limit)) as engine:
        first = await engine.backend.sandboxes.create(SPEC)
        with pytest.raises(CapacityRejected):
            await engine.backend.sandboxes.create(SPEC)
        await engine.backend.sandboxes.delete(first.id, DeleteOptions(force=True))
        await engine.backend.sandboxes.create(SPEC)


@pytest.mark.parametrize(
    ("capacity", "short", "available"),
    [
        (Capacity(max_sandboxes=2), "sandboxes", 0),
        (Capacity(max_vcpus=5), "vcpus", 1),
        (Capacity(max_memory_bytes=2 * GIB + 100 * MIB), "memory", 100 * MIB),
    ],
)
def test_refusal_names_what_is_short_and_how_much_is_left(capacity: Capacity, short: str, available: int) -> None:
    admission = Admission(capacity, Gauge())
    for _ in range(2):
        admission.reserve(SandboxResources())
    with pytest.raises(CapacityRejected) as refused:
        admission.reserve(SandboxResources())
    assert (refused.value.short, refused.value.available) == (short, available)


@pytest.mark.parametrize(
    ("gauge", "short"),
    [
        (Gauge(memory_bytes=GIB // 4), "free memory on the host"),
        (Gauge(disk_bytes=GIB // 4), "free disk on the host"),
    ],
)
def test_floors_look_at_the_machine_as_it_is(gauge: Gauge, short: str) -> None:
    with pytest.raises(CapacityRejected) as refused:
        Admission(Capacity(), gauge).reserve(SandboxResources())
    assert refused.value.short == short


def test_reservation_given_back_twice_is_given_back_once() -> None:
    admission = Admission(Capacity(), Gauge())
    reservation = admission.reserve(SandboxResources())
    reservation.release()
    reservation.release()
    assert (admission.sandboxes, admission.vcpus, admission.memory_bytes) == (0, 0, 0)


async def test_machine_is_measured_at_most_every_quarter_second(tmp_path: Path) -> None:
    clock = VirtualClock()
    gauge = HostGauge(tmp_path, clock)
    first = gauge.read()
    assert first.memory_bytes > 0
    assert first.disk_bytes > 0
    await clock.advance(0.2)
    assert gauge.read() is first
    await clock.advance(0.1)
    assert gauge.read() is not first


def test_promoted_room_changes_its_column_and_is_counted_once() -> None:
    admission = Admission(Capacity(max_sandboxes=1), Gauge())
    warm = admission.reserve(SandboxResources(), Kind.WARM)
    with pytest.raises(CapacityRejected):
        admission.reserve(SandboxResources())
    admission.promote(warm)
    assert (admission.columns[Kind.ACTIVE].sandboxes, admission.columns[Kind.WARM].sandboxes) == (1, 0)
    warm.release()
    assert (admission.sandboxes, admission.vcpus, admission.memory_bytes) == (0, 0, 0)


def test_promotion_to_more_than_there_is_changes_nothing() -> None:
    admission = Admission(Capacity(max_memory_bytes=2 * GIB), Gauge())
    warm = admission.reserve(SandboxResources(), Kind.WARM)
    with pytest.raises(CapacityRejected) as refused:
        admission.promote(warm, SandboxResources(memory_bytes=4 * GIB))
    assert (refused.value.short, refused.value.available) == ("memory", GIB)
    assert (warm.kind, admission.columns[Kind.WARM].memory_bytes) == (Kind.WARM, GIB)
    admission.promote(warm, SandboxResources(memory_bytes=2 * GIB))
    assert admission.columns[Kind.ACTIVE].memory_bytes == 2 * GIB


def test_room_given_back_or_active_already_cannot_be_promoted() -> None:
    admission = Admission(Capacity(), Gauge())
    with pytest.raises(ValueError, match="warm entry"):
        admission.promote(admission.reserve(SandboxResources()))
    gone = admission.reserve(SandboxResources(), Kind.WARM)
    gone.release()
    with pytest.raises(ValueError, match="warm entry"):
        admission.promote(gone)


class Shelf:
    """Spare entries that are numbers."""

    def __init__(self, ready: int, wanted: int) -> None:
        self._ready, self._wanted = ready, wanted
        self.held: str | None = None

    def ready(self) -> int:
        return self._ready

    def wanted(self) -> int:
        return self._wanted

    def memory_bytes(self) -> int:
        return self._ready * MIB

    async def give_up(self, count: int, *, because: str) -> int:
        gone = min(count, self._ready)
        self._ready -= gone
        return gone

    def room_freed(self) -> None:
        pass

    def hold(self, because: str) -> None:
        self.held = because

    def resume(self) -> None:
        self.held = None


async def test_all_that_joined_are_one_spare() -> None:
    room, first, second = SpareRoom(), Shelf(2, 3), Shelf(5, 5)
    assert (room.ready(), room.wanted(), room.memory_bytes(), await room.give_up(3, because="no room")) == (0, 0, 0, 0)
    room.join(first)
    room.hold("too little memory")
    room.join(second)
    assert first.held == second.held == "too little memory"
    assert (room.ready(), room.wanted(), room.memory_bytes()) == (7, 8, 7 * MIB)
    assert await room.give_up(4, because="no room") == 4
    assert (first.ready(), second.ready()) == (0, 3)
    room.resume()
    assert (first.held, second.held) == (None, None)
