"""Deadlines end what they should, when they should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from firkin.engine.deadlines import Deadlines
from firkin.law.errors import InvalidSpec, NotFound
from firkin.law.ids import SandboxId
from firkin.law.policies import DeadlinePolicy, Policies
from firkin.law.sandboxes import At, Graceful, Never, SandboxSpec, Timeout
from firkin.law.states import EndCause, SandboxState
from firkin.lifetimes import children
from firkin.testing.virtual_clock import VirtualClock
from tests.engine.conftest import NO_FLOORS, TEMPLATE, Engine, engine_over, eventually


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def engine(tmp_path: Path, clock: VirtualClock) -> AsyncIterator[Engine]:
    async with engine_over(tmp_path / "state", clock=clock) as started:
        yield started


def _spec(deadline: Timeout | At | Never | None) -> SandboxSpec:
    return SandboxSpec.from_template(TEMPLATE, deadline=deadline)


async def _gone(engine: Engine, sandbox_id: SandboxId) -> None:
    await eventually(lambda: sandbox_id not in engine.node.roster)


async def test_sandbox_ends_at_its_deadline_and_says_so(engine: Engine, clock: VirtualClock) -> None:
    info = await engine.backend.sandboxes.create(_spec(Timeout(30)))
    await clock.advance(29.9)
    assert (await engine.backend.sandboxes.inspect(info.id)).state is SandboxState.RUNNING
    await clock.advance(0.2)
    await _gone(engine, info.id)
    with pytest.raises(NotFound, match=r"it ended at 2030-01-01T00:00:30Z: deadline"):
        await engine.backend.sandboxes.inspect(info.id)
    assert await engine.leftovers() == []


async def test_end_is_at_most_a_tenth_of_a_second_late(engine: Engine, clock: VirtualClock) -> None:
    infos = [await engine.backend.sandboxes.create(_spec(Timeout(seconds))) for seconds in (7, 3, 5, 3.05)]
    await clock.advance(10)
    for info in infos:
        await _gone(engine, info.id)
        last = await engine.node.records.last(info.id)
        assert last is not None
        assert last.end_cause is EndCause.DEADLINE


async def test_the_one_task_wakes_at_the_very_deadline_in_order(clock: VirtualClock) -> None:
    fired: list[tuple[str, float]] = []
    deadlines = Deadlines(clock, lambda sandbox_id: fired.append((sandbox_id, clock.monotonic())))
    async with children() as own:
        own.start(deadlines.run(), name="deadlines")
        for name, seconds in (("c", 3.0), ("a", 1.0), ("b", 2.0)):
            deadlines.arm(SandboxId(name), seconds)
        deadlines.arm(SandboxId("a"), 2.5)
        deadlines.disarm(SandboxId("b"))
        await clock.advance(10)
    assert fired == [("a", 2.5), ("c", 3.0)]


async def test_thousands_of_renewals_leave_a_small_heap(clock: VirtualClock) -> None:
    deadlines = Deadlines(clock, lambda _: None)
    for round in range(10_000):
        deadlines.arm(SandboxId("a"), 100.0 + round)
    assert len(deadlines._heap) < 100


async def test_timeout_of_zero_ends_at_once(engine: Engine, clock: VirtualClock) -> None:
    info = await engine.backend.sandboxes.create(_spec(Timeout(0)))
    await _gone(engine, info.id)


@pytest.mark.thorough
async def test_renewal_moves_the_deadline_and_never_removes_it(engine: Engine, clock: VirtualClock) -> None:
    control = engine.backend.sandboxes
    info = await control.create(_spec(Timeout(10)))
    renewed = await control.update_deadline(info.id, Timeout(100))
    assert renewed.deadline_at == clock.now() + timedelta(seconds=100)
    await clock.advance(50)
    assert (await control.inspect(info.id)).state is SandboxState.RUNNING
    await control.update_deadline(info.id, Never())
    await clock.advance(10_000)
    assert (await control.inspect(info.id)).deadline_at is None
    await control.update_deadline(info.id, At(clock.now() - timedelta(seconds=1)))
    await _gone(engine, info.id)


@pytest.mark.thorough
async def test_renewal_that_succeeds_against_an_expiry_keeps_the_sandbox(engine: Engine, clock: VirtualClock) -> None:
    """Both at the same instant: whoever is second sees what the first did."""
    for _ in range(20):
        info = await engine.backend.sandboxes.create(_spec(Timeout(5)))
        renewing = asyncio.gather(
            clock.advance(5), engine.backend.sandboxes.update_deadline(info.id, Timeout(60)), return_exceptions=True
        )
        _, outcome = await renewing
        if isinstance(outcome, NotFound):
            await _gone(engine, info.id)
        else:
            assert not isinstance(outcome, BaseException)
            assert (await engine.backend.sandboxes.inspect(info.id)).state is SandboxState.RUNNING


async def test_stopped_sandbox_is_removed_at_its_deadline(engine: Engine, clock: VirtualClock) -> None:
    info = await engine.backend.sandboxes.create(_spec(Timeout(10)))
    await engine.backend.sandboxes.stop(info.id, Graceful(0))
    await clock.advance(11)
    await _gone(engine, info.id)
    assert await engine.driver.held() == []


async def test_default_and_longest_timeout_are_the_operators(tmp_path: Path, clock: VirtualClock) -> None:
    limits = Policies(capacity=NO_FLOORS, deadlines=DeadlinePolicy(default_timeout_s=60, max_timeout_s=100))
    async with engine_over(tmp_path / "state", clock=clock, policies=limits) as engine:
        control = engine.backend.sandboxes
        info = await control.create(_spec(None))
        assert info.deadline_at == clock.now() + timedelta(seconds=60)
        for wish in (Timeout(101), Never(), At(clock.now() + timedelta(seconds=200))):
            with pytest.raises(InvalidSpec, match="at most 100 s"):
                await control.create(_spec(wish))
            with pytest.raises(InvalidSpec):
                await control.update_deadline(info.id, wish)
        await control.update_deadline(info.id, Timeout(100))
