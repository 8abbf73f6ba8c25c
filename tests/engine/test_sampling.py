"""Samples of what sandboxes use: when they are taken, what is kept, what becomes of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from firkin.drivers.memory.driver import MemoryInstance
from firkin.engine import sampling
from firkin.engine.database import Database
from firkin.engine.logs import LogStore
from firkin.engine.programs import Programs
from firkin.engine.records import Records
from firkin.engine.roster import Resident, Roster
from firkin.engine.sampling import EVERY_AT_MOST_S, EVERY_S, KEPT, Samples, UsageTrack
from firkin.engine.stored_forms import Origin
from firkin.law.ids import SandboxId
from firkin.law.logs import LogFilter, LogLevel
from firkin.law.processes import ById, Command, Ended, Signal
from firkin.law.resources import MIB, SandboxResources
from firkin.law.sandboxes import DeleteOptions, SandboxInfo
from firkin.law.snapshots import PauseOptions
from firkin.law.states import SandboxState
from firkin.lifetimes import children
from firkin.testing.virtual_clock import VirtualClock, settle
from tests.engine.conftest import SPEC, Engine, engine_over, eventually

BUSY_US_A_S = 500_000


class Meter:
    """An instance of which only the counters are asked: half a CPU is busy all the time."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.memory = 100 * MIB
        self.oom_kills = 0
        self.asked = 0
        self.broken = False

    async def usage(self) -> Mapping[str, int]:
        self.asked += 1
        if self.broken:
            raise OSError("the counters are gone")
        return {
            "cpu_us": int(self._clock.monotonic() * BUSY_US_A_S),
            "memory_bytes": self.memory,
            "memory_cache_bytes": 7,
            "disk_used_bytes": 9,
            "oom_kills": self.oom_kills,
        }


class Bench:
    """The sampler over residents of the test's own making."""

    def __init__(self, clock: VirtualClock, records: Records) -> None:
        self.clock, self.records = clock, records
        self.roster = Roster(records)
        self.logs = LogStore(clock, records)
        self.programs = Programs(clock)
        self.samples = Samples(self.roster, clock=clock, records=records, logs=self.logs, programs=self.programs)

    def sandbox(self, name: str = "a") -> tuple[Resident, Meter]:
        info = SandboxInfo(
            id=SandboxId(name),
            state=SandboxState.RUNNING,
            created_at=self.clock.now(),
            started_at=self.clock.now(),
            resources=SandboxResources(),
        )
        meter = Meter(self.clock)
        resident = Resident(info=info, origin=Origin(directory="", base_env={}), instance=meter)  # type: ignore[arg-type]  # counters are all that is asked of it
        self.roster.add(resident)
        return resident, meter


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    database = await Database.open(tmp_path / "state.db")
    bench = Bench(VirtualClock(), Records(database))
    async with children() as tasks:
        tasks.start(bench.samples.run(), name="samples")
        yield bench
    await database.aclose()


def test_a_full_track_is_thinned_so_that_the_whole_life_stays_in_view() -> None:
    track = UsageTrack(0.0)
    for second in range(20_000):
        track.add((float(second), 1.0, second, 0, 0))
        assert len(track) <= KEPT
        assert track.size_bytes <= 20_000
    times = [point[0] for point in track]
    assert times == sorted(set(times))
    assert times[0] == 0.0
    assert times[-40:] == [float(second) for second in range(19_960, 20_000)]


async def test_the_first_sample_is_taken_after_a_second_and_then_one_every_five(bench: Bench) -> None:
    resident, _ = bench.sandbox()
    await bench.clock.advance(2.0)
    assert len(bench.samples.history(resident)) == 1
    await bench.clock.advance(20.0)
    found = bench.samples.history(resident)
    gaps = [(b.observed_at - a.observed_at).total_seconds() for a, b in pairwise(found)]
    assert gaps == [EVERY_S] * 4
    assert [round(usage.cpu_used_pct) for usage in found] == [50] * 5
    last = found[-1]
    assert (last.memory_used_bytes, last.memory_cache_bytes, last.disk_used_bytes) == (100 * MIB, 7, 9)
    assert last.memory_total_bytes == resident.info.resources.memory_bytes


async def test_a_reader_takes_nothing_from_the_intervals_of_the_samples(bench: Bench) -> None:
    resident, _ = bench.sandbox()
    await bench.clock.advance(2.0)
    for _ in range(10):
        await bench.clock.advance(0.3)
        assert bench.samples.cpu_pct(resident, int(bench.clock.monotonic() * BUSY_US_A_S)) == pytest.approx(50)
    await bench.clock.advance(3.0)
    assert [round(usage.cpu_used_pct) for usage in bench.samples.history(resident)] == [50, 50]


@pytest.mark.thorough
async def test_the_time_of_a_pause_is_in_no_interval_and_its_samples_stay(bench: Bench) -> None:
    resident, meter = bench.sandbox()
    await bench.clock.advance(7.0)
    before = bench.samples.history(resident)
    resident.info = _became(resident, SandboxState.PAUSED)
    asked = meter.asked
    await bench.clock.advance(1000.0)
    assert (meter.asked, bench.samples.history(resident)) == (asked, before)
    resident.info = _became(resident, SandboxState.RUNNING)
    await bench.clock.advance(7.0)
    assert {round(usage.cpu_used_pct) for usage in bench.samples.history(resident)[len(before) :]} <= {0, 50}


def _became(resident: Resident, state: SandboxState) -> SandboxInfo:
    return replace(resident.info, state=state)


async def test_counters_that_cannot_be_read_are_left_out(bench: Bench) -> None:
    resident, meter = bench.sandbox()
    other, _ = bench.sandbox("b")
    meter.broken = True
    await bench.clock.advance(12.0)
    assert bench.samples.history(resident) == []
    assert len(bench.samples.history(other)) == 3
    meter.broken = False
    await bench.clock.advance(6.0)
    assert len(bench.samples.history(resident)) == 1


async def test_samples_are_less_frequent_when_they_would_cost_too_much(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = iter(range(10_000_000))
    monkeypatch.setattr(sampling.time, "thread_time", lambda: next(spent) * 0.0002)
    for number in range(1000):
        bench.sandbox(f"s{number}")
    await bench.clock.advance(0.6)
    await settle(3000)
    assert bench.samples.every_s == pytest.approx(1000 * 0.0002 / 0.02)
    monkeypatch.setattr(sampling, "MOST_CPU_SHARE", 0.0001)
    assert bench.samples.every_s == EVERY_AT_MOST_S


async def test_a_kill_for_memory_is_told_and_counts_as_the_peak(bench: Bench) -> None:
    resident, meter = bench.sandbox()
    await bench.clock.advance(2.0)
    assert bench.samples.peak_bytes(resident.id) == 100 * MIB
    meter.oom_kills = 1
    await bench.clock.advance(6.0)
    warnings = await bench.logs.list(LogFilter(sandbox_id=resident.id, level=LogLevel.WARN))
    assert [entry.message[:13] for entry in warnings] == ["out of memory"]
    assert bench.samples.peak_bytes(resident.id) == resident.info.resources.memory_bytes


async def test_who_leaves_takes_the_samples_along_and_leaves_the_peak(bench: Bench) -> None:
    resident, meter = bench.sandbox()
    meter.memory = 200 * MIB
    await bench.clock.advance(2.0)
    meter.memory = 50 * MIB
    await bench.clock.advance(10.0)
    bench.roster.remove(resident)
    await bench.clock.advance(1.0)
    assert bench.samples.history(resident) == []
    assert (await bench.records.remains(resident.id)).peak_memory_bytes == 200 * MIB


async def test_a_sandbox_without_a_sample_is_sampled_when_somebody_asks(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    metrics = engine.backend.metrics
    (first,) = await metrics.history(info.id)
    assert first.memory_used_bytes > 0
    assert await metrics.history(info.id, first.observed_at, first.observed_at) == [first]
    a_second = timedelta(seconds=1)
    assert await metrics.history(info.id, first.observed_at + a_second) == []
    assert await metrics.history(info.id, None, first.observed_at - a_second) == []
    await engine.backend.pauses.pause(info.id, PauseOptions())  # type: ignore[union-attr]  # this driver can
    assert await metrics.history(info.id) == [first]


async def test_the_peak_is_in_the_history_after_the_end_and_after_a_restart(tmp_path: Path) -> None:
    async with engine_over(tmp_path / "state") as engine:
        info = await engine.backend.sandboxes.create(SPEC)
        (usage,) = await engine.backend.metrics.history(info.id)
        await engine.backend.sandboxes.delete(info.id, DeleteOptions(force=True))
        history = await engine.backend.sandboxes.history(info.id)
        assert history.peak_memory_bytes == usage.memory_used_bytes > 0
    async with engine_over(tmp_path / "state") as again:
        assert await again.backend.sandboxes.history(info.id) == history


async def _end(engine: Engine, sandbox_id: SandboxId, *, by_caller: bool) -> Ended:
    """How a program ends that SIGKILL hit, sent through the engine or behind its back."""
    stream = await engine.backend.processes.stream(sandbox_id, Command.argv("sleep", "60"))
    selector = ById(stream.info.id)
    if by_caller:
        await engine.backend.processes.signal(sandbox_id, selector, Signal.KILL)
    else:
        inside = await engine.node.links.enter(sandbox_id, "test")
        await inside.processes.signal(selector, Signal.KILL)
    ends = [event async for event in stream if isinstance(event, Ended)]
    await stream.aclose()
    return ends[0]


@pytest.mark.thorough
async def test_a_program_that_the_kernel_killed_for_memory_says_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = [3]

    async def usage(self: MemoryInstance) -> Mapping[str, int]:
        return {"cpu_us": 0, "memory_bytes": MIB, "oom_kills": kills[0]}

    monkeypatch.setattr(MemoryInstance, "usage", usage)
    info = await engine.backend.sandboxes.create(SPEC)
    await eventually(lambda: engine.node.programs.oom_kills(info.id) == 3)
    assert not (await _end(engine, info.id, by_caller=False)).out_of_memory
    stream = await engine.backend.processes.stream(info.id, Command.argv("sleep", "60"))
    kills[0] = 4
    inside = await engine.node.links.enter(info.id, "test")
    reader = await engine.backend.processes.connect(info.id, ById(stream.info.id))
    await inside.processes.signal(ById(stream.info.id), Signal.KILL)
    for one in (stream, reader):
        assert [event.out_of_memory async for event in one if isinstance(event, Ended)] == [True]
        await one.aclose()
    kills[0] = 5
    assert not (await _end(engine, info.id, by_caller=True)).out_of_memory
    warnings = await engine.backend.logs.list(LogFilter(sandbox_id=info.id, level=LogLevel.WARN))
    assert any(f"process {stream.info.id} ('sleep')" in entry.message for entry in warnings)
    assert (await engine.backend.sandboxes.history(info.id)).peak_memory_bytes == info.resources.memory_bytes


async def test_starts_and_ends_of_programs_are_logged(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    async for _ in await engine.backend.processes.stream(info.id, Command.shell("exit 3")):
        pass
    await engine.backend.processes.run(info.id, Command.shell("true"))
    found = await engine.backend.logs.list(LogFilter(sandbox_id=info.id))
    told = [(entry.level, entry.message) for entry in found if entry.source == "process"]
    assert [level for level, _ in told] == [LogLevel.DEBUG, LogLevel.INFO, LogLevel.INFO]
    assert told[1][1].endswith(": exit status 3")
    assert told[2][1].startswith("a command ended after ")


@pytest.mark.thorough
async def test_a_thousand_commands_do_not_push_out_why_it_lives(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    for _ in range(1000):
        await engine.backend.processes.start(info.id, Command.shell("true"))
    found = await engine.backend.logs.list(LogFilter(sandbox_id=info.id))
    assert found[0].message == "creating: create requested"
