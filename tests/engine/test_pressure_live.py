"""The node under load, as it lives: steady, a burst, pressure, recovery. The machine is made up, the engine is not."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firkin.engine.admission import Admission, HostGauge, HostRoom, Kind, Reservation
from firkin.engine.clock import SystemClock
from firkin.engine.stalls import StallGauge
from firkin.engine.waiting_line import AT_ONCE, Wish
from firkin.law.errors import CapacityRejected, RejectReason
from firkin.law.metrics import MetricFilter
from firkin.law.policies import Capacity, DeadlinePolicy, Policies
from firkin.law.pressure import BackpressurePolicy, PressureReason, PressureState
from firkin.law.resources import GIB, MIB, SandboxResources
from firkin.law.sandboxes import DeleteOptions, SandboxFilter, SandboxInfo
from firkin.law.snapshots import PauseOptions
from firkin.law.warm_pool import WarmPoolSpec
from firkin.lifetimes import Children, children
from firkin.testing.virtual_clock import VirtualClock, settle
from tests.engine.conftest import SPEC, TEMPLATE, Engine, engine_over

ENTRY, ACTIVE = 8 * MIB, 64 * MIB
TOTAL = 8 * GIB
FLOOR, REFILL = GIB // 2, GIB
LIMIT = 20


class Machine(HostGauge):
    """8 GiB, of which sandboxes take their part and a hog what the test says."""

    def __init__(self) -> None:
        super().__init__(Path("/"), SystemClock())
        self.hog = 0
        self.disk = 64 * GIB
        self.admission: Admission | None = None

    def read(self) -> HostRoom:
        taken = self.hog
        if self.admission is not None:
            columns = self.admission.columns
            taken += ACTIVE * columns[Kind.ACTIVE].sandboxes + ENTRY * columns[Kind.WARM].sandboxes
        return HostRoom(memory_bytes=TOTAL - taken, disk_bytes=self.disk)

    def totals(self) -> HostRoom:
        return HostRoom(memory_bytes=TOTAL, disk_bytes=100 * GIB)


class Idle(StallGauge):
    """Stalls as the test says them."""

    def __init__(self) -> None:
        self.cpu, self.io = 0.0, 0.0
        self.tells_all = True
        self.cpu_pct, self.io_pct = lambda: self.cpu, lambda: self.io


class Pool:
    """Keeps entries ready that are nothing but reservations, as a warm pool would."""

    def __init__(self, engine: Engine, clock: VirtualClock, depth: int) -> None:
        self._admission = engine.node.admission
        self._clock = clock
        self.depth = depth
        self.entries: list[Reservation] = []
        self.held: str | None = None
        self.made = 0

    def ready(self) -> int:
        return len(self.entries)

    def wanted(self) -> int:
        return self.depth

    def memory_bytes(self) -> int:
        return ENTRY * len(self.entries)

    async def give_up(self, count: int, *, because: str) -> int:
        gone = self.entries[:count]
        del self.entries[:count]
        await asyncio.sleep(0)
        for entry in gone:
            entry.release()
        return len(gone)

    def room_freed(self) -> None:
        pass

    def hold(self, because: str) -> None:
        self.held = because

    def resume(self) -> None:
        self.held = None

    async def refill(self) -> None:
        while True:
            await self._clock.sleep_until(self._clock.monotonic() + 0.05)
            if self.held is None and len(self.entries) < self.depth:
                try:
                    self.entries.append(self._admission.reserve(SandboxResources(), Kind.WARM))
                    self.made += 1
                except CapacityRejected:
                    continue


class Node:
    """An engine of which everything can be seen, and whose time is the test's."""

    def __init__(self, engine: Engine, clock: VirtualClock, machine: Machine, stalls: Idle, own: Children) -> None:
        self.engine, self.clock, self.machine, self.stalls = engine, clock, machine, stalls
        self._own = own
        self.pool = Pool(engine, clock, depth=10)
        engine.node.spare.join(self.pool)
        own.start(self.pool.refill(), name="pool")

    @property
    def state(self) -> PressureState:
        return self.engine.node.pressure.status().plan.state

    @property
    def states(self) -> list[PressureState]:
        return [change.state for change in self.engine.node.pressure.status().changes]

    @property
    def active(self) -> int:
        return self.engine.node.admission.columns[Kind.ACTIVE].sandboxes

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self._own.start(_outcome(work), name="caller")

    async def create(self, count: int, *, within_s: float = 0.0) -> list[SandboxInfo | CapacityRejected]:
        """What became of that many creates at once, when that much time had passed."""
        asked = [self.start(self.engine.backend.sandboxes.create(SPEC)) for _ in range(count)]
        await self.live(within_s)
        async with asyncio.timeout(20):
            return list(await asyncio.gather(*asked))

    async def live(self, seconds: float) -> None:
        """Let time pass in small steps, each with time for threads to answer."""
        for _ in range(round(seconds / 0.05)):
            await self.clock.advance(0.05)
            await asyncio.sleep(0.001)
        await settle()


async def _outcome(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await work
    except CapacityRejected as refused:
        return refused


@asynccontextmanager
async def node_in(state_dir: Path, **limits: Any) -> AsyncIterator[Node]:
    clock, machine, stalls = VirtualClock(), Machine(), Idle()
    policies = Policies(
        capacity=Capacity(max_sandboxes=LIMIT, memory_floor_bytes=FLOOR, disk_floor_bytes=GIB),
        deadlines=DeadlinePolicy(default_timeout_s=None),
        backpressure=BackpressurePolicy(**{"max_pending": 30, "max_wait_s": 5.0, **limits}),
    )
    async with (
        engine_over(state_dir, clock=clock, policies=policies, gauge=machine, stalls=stalls) as engine,
        children() as own,
    ):
        machine.admission = engine.node.admission
        yield Node(engine, clock, machine, stalls, own)


@pytest.mark.thorough
async def test_a_steady_load_is_left_alone(tmp_path: Path) -> None:
    async with node_in(tmp_path / "state") as node:
        made = await node.create(5)
        await node.live(30)
        assert all(isinstance(each, SandboxInfo) for each in made)
        assert (node.state, node.pool.ready(), node.pool.made, node.states) == (PressureState.NOMINAL, 10, 10, [])
        assert node.pool.held is None


@pytest.mark.thorough
async def test_a_burst_takes_the_room_of_what_was_kept_ready_and_the_rest_is_told_in_time(tmp_path: Path) -> None:
    async with node_in(tmp_path / "state") as node:
        await node.live(5)
        assert node.pool.ready() == 10
        outcomes = await node.create(60, within_s=6)
        refused = [each for each in outcomes if isinstance(each, CapacityRejected)]
        assert len(outcomes) - len(refused) == LIMIT == node.active
        assert node.pool.ready() == 0
        reasons = Counter(each.refusal.reason for each in refused)
        assert reasons == {RejectReason.QUEUE_FULL: len(refused) - 30 + 10, RejectReason.DEADLINE_PASSED: 20} or (
            set(reasons) == {RejectReason.QUEUE_FULL, RejectReason.DEADLINE_PASSED}
        )
        assert all(each.refusal.waited_s <= 5.3 for each in refused)
        status = node.engine.node.line.status()
        assert status.waiting == 0
        assert sum(status.rejected.values()) == len(refused)
        assert status.admitted_at_once + status.admitted_after_waiting == LIMIT
        infos = [each for each in outcomes if isinstance(each, SandboxInfo)]
        for info in infos[:15]:
            await node.engine.backend.sandboxes.delete(info.id, DeleteOptions(force=True))
        await node.live(12)
        assert node.pool.ready() == 10
        assert node.state is PressureState.NOMINAL


@pytest.mark.thorough
async def test_pressure_takes_what_is_ready_and_never_what_runs_and_recovery_brings_it_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "firkin.engine")
    async with node_in(tmp_path / "state") as node:
        await node.create(5)
        await node.live(5)
        own = 5 * ACTIVE + 10 * ENTRY
        node.machine.hog = TOTAL - own - REFILL + 2 * ENTRY
        await node.live(2)
        assert node.state is PressureState.SHRINK
        assert (node.active, node.pool.ready()) == (5, 0)  # a tenth above the floor cannot be had from ten of them
        assert isinstance((await node.create(1))[0], SandboxInfo)

        node.machine.hog = TOTAL - 6 * ACTIVE - FLOOR + MIB
        await node.live(2)
        assert node.state is PressureState.CRITICAL
        (refused,) = await node.create(1)
        assert isinstance(refused, CapacityRejected)
        assert refused.refusal.reason is RejectReason.PRESSURE
        assert len(await node.engine.backend.sandboxes.list(SandboxFilter())) == 6

        node.machine.hog -= FLOOR // 20  # above the floor again, by a hair
        await node.live(5)
        assert node.engine.node.pressure.status().plan.refuses
        (refused,) = await node.create(1)
        assert isinstance(refused, CapacityRejected)
        assert refused.refusal.reason is RejectReason.PRESSURE
        node.machine.hog -= FLOOR // 10
        await node.live(1)
        assert not node.engine.node.pressure.status().plan.refuses
        assert isinstance((await node.create(1))[0], SandboxInfo)

        node.machine.hog = 0
        await node.live(1)
        assert isinstance((await node.create(1))[0], SandboxInfo)
        await node.live(9)
        assert (node.state, node.pool.ready()) == (PressureState.NOMINAL, 10)
        assert node.states == [
            PressureState.SHRINK,
            PressureState.CRITICAL,
            PressureState.RECOVERY,
            PressureState.NOMINAL,
        ]
        figures = {each.name: each.value for each in await node.engine.backend.metrics.snapshot(MetricFilter())}
        assert figures["autoscale.evicted"] == 10
        assert figures["autoscale.state"] == "nominal"
        assert isinstance(cleared := figures["autoscale.pressure_clear_to_ready_target_ms"], float)
        assert 0 < cleared < 10_000
        assert isinstance(spare := figures["autoscale.safe_spare_limiting_utilization_pct"], float)
        assert 0 < spare < 100
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("pressure state=")]
    assert [line.split()[1] for line in told] == [
        "state=shrink",
        "state=critical",
        "state=recovery",
        "state=nominal",
    ]
    assert "reasons=memory_floor" in told[0]


@pytest.mark.thorough
async def test_giving_up_what_is_ready_brings_the_floor_back_within_seconds(tmp_path: Path) -> None:
    async with node_in(tmp_path / "state") as node:
        await node.live(5)
        node.machine.hog = TOTAL - REFILL - 9 * ENTRY  # short by one entry
        await node.live(5)
        assert 0 <= node.pool.ready() < 10
        free = node.machine.read().memory_bytes
        assert free >= REFILL
        assert node.engine.node.pressure.figures.to_safe_floor_ms is not None
        assert node.engine.node.pressure.figures.to_safe_floor_ms < 5000


@pytest.mark.thorough
async def test_a_full_disk_is_a_reason_of_its_own(tmp_path: Path) -> None:
    async with node_in(tmp_path / "state") as node:
        await node.live(2)
        node.machine.disk = GIB // 2
        await node.live(2)
        status = node.engine.node.pressure.status()
        assert (status.plan.state, status.plan.reasons) == (PressureState.CRITICAL, {PressureReason.DISK_FLOOR})
        (refused,) = await node.create(1)
        assert isinstance(refused, CapacityRejected)
        assert refused.short == "free disk on the host"


@pytest.mark.thorough
async def test_busy_cpus_stop_refilling_and_nothing_else(tmp_path: Path) -> None:
    async with node_in(tmp_path / "state") as node:
        await node.live(2)
        node.stalls.cpu = 97.0
        await node.live(2)
        assert (node.state, node.pool.held, node.pool.ready()) == (PressureState.WATCH, "cpu_pressure", 10)
        assert isinstance((await node.create(1))[0], SandboxInfo)
        node.stalls.cpu = 5.0
        await node.live(5)
        assert (node.state, node.pool.held) == (PressureState.NOMINAL, None)


@pytest.mark.thorough
async def test_a_lowered_limit_sends_away_what_is_ready_first(tmp_path: Path) -> None:
    async with node_in(tmp_path / "state") as node:
        await node.create(5)
        await node.live(5)
        await node.engine.backend.node.limit(Capacity(max_sandboxes=8, memory_floor_bytes=FLOOR))
        assert (node.active, node.pool.ready()) == (5, 3)
        await node.engine.backend.node.limit(Capacity(max_sandboxes=2, memory_floor_bytes=FLOOR))
        assert (node.active, node.pool.ready()) == (5, 0)


async def test_memory_that_comes_free_by_itself_serves_those_who_wait(tmp_path: Path) -> None:
    async with node_in(tmp_path / "state") as node:
        node.pool.depth = 0
        await node.live(1)
        node.machine.hog = TOTAL - FLOOR + MIB
        waiting = node.start(node.engine.backend.sandboxes.create(SPEC))
        await settle()
        assert len(node.engine.node.line) == 1
        node.machine.hog = 0
        await node.live(1)
        async with asyncio.timeout(10):
            assert isinstance(await waiting, SandboxInfo)


async def test_memory_that_a_paused_sandbox_keeps_is_not_given_to_who_waits(tmp_path: Path) -> None:
    async with node_in(tmp_path / "state") as node:
        node.pool.depth = 0
        await node.live(1)
        await node.engine.backend.node.limit(Capacity(max_memory_bytes=2 * GIB, memory_floor_bytes=FLOOR))
        first, _ = [each for each in await node.create(2) if isinstance(each, SandboxInfo)]
        waiting = node.start(node.engine.backend.sandboxes.create(SPEC))
        await settle()
        assert len(node.engine.node.line) == 1
        assert node.engine.backend.pauses is not None
        async with asyncio.timeout(10):
            await node.engine.backend.pauses.pause(first.id, PauseOptions())
        await node.live(1)
        assert len(node.engine.node.line) == 1
        assert node.engine.node.admission.memory_bytes == 2 * GIB
        await node.engine.backend.sandboxes.delete(first.id, DeleteOptions(force=True))
        async with asyncio.timeout(10):
            assert isinstance(await waiting, SandboxInfo)


@pytest.mark.thorough
async def test_a_build_takes_the_room_of_what_is_kept_ready(tmp_path: Path) -> None:
    async with node_in(tmp_path / "state") as node:
        await node.live(5)
        await node.engine.backend.node.limit(Capacity(max_sandboxes=10, memory_floor_bytes=FLOOR))
        assert node.pool.ready() == 10
        wish = Wish("build", SandboxResources(), lambda: node.engine.node.admission.reserve(SandboxResources()))
        asked = node.start(node.engine.node.line.admitted(wish, policy=AT_ONCE))
        await node.live(0.5)
        async with asyncio.timeout(5):
            assert isinstance(await asked, Reservation)
        assert node.pool.ready() == 9


@pytest.mark.thorough
async def test_a_real_pool_shrinks_under_pressure_and_is_full_again_soon_after(tmp_path: Path) -> None:
    async with node_in(tmp_path / "state") as node:
        node.pool.depth = 0
        warm = node.engine.backend.warm_pool
        await node.live(1)
        await warm.prewarm(TEMPLATE, WarmPoolSpec.of_depth(4))
        made = await node.create(1)
        await node.live(3)
        assert (node.active, node.engine.node.warm.ready()) == (1, 4)

        node.machine.hog = TOTAL - FLOOR + MIB
        await node.live(2)
        assert (node.state, node.active, node.engine.node.warm.ready()) == (PressureState.CRITICAL, 1, 0)
        (refused,) = await node.create(1)
        assert isinstance(refused, CapacityRejected)

        node.machine.hog = 0
        await node.live(9)
        assert (node.state, node.active, node.engine.node.warm.ready()) == (PressureState.NOMINAL, 1, 4)
        assert isinstance(made[0], SandboxInfo)
        assert isinstance((await node.create(1))[0], SandboxInfo)


@pytest.mark.thorough
async def test_a_real_pool_gives_way_to_active_work_at_a_limit(tmp_path: Path) -> None:
    async with node_in(tmp_path / "state") as node:
        node.pool.depth = 0
        await node.live(1)
        await node.engine.backend.warm_pool.prewarm(TEMPLATE, WarmPoolSpec.of_depth(4))
        await node.engine.backend.node.limit(Capacity(max_sandboxes=5, memory_floor_bytes=FLOOR))
        other = replace(SPEC, env={"A": "1"}, hardened=True)  # no entry of the pool will do
        asked = [node.start(node.engine.backend.sandboxes.create(other)) for _ in range(5)]
        await node.live(2)
        async with asyncio.timeout(10):
            assert all([isinstance(await each, SandboxInfo) for each in asked])
        assert (node.active, node.engine.node.warm.ready()) == (5, 0)
