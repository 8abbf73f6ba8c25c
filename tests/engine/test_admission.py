"""Limits on promises, floors on the machine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from firkin.engine.admission import Admission, HostGauge, HostRoom
from firkin.engine.clock import SystemClock
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
