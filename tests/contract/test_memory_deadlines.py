"""Deadlines of the engine over the memory driver, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver, MemoryRootPreparer
from firkin.engine.backend import LocalBackend
from firkin.law.errors import NotFound
from firkin.law.policies import Policies
from firkin.law.sandboxes import At, Never, SandboxDeadline, SandboxFilter, SandboxInfo, SandboxSpec, Timeout
from firkin.law.states import EndCause, SandboxState
from firkin.law.templates import TemplateSpec
from firkin.testing import VirtualClock, virtual_clock
from firkin.testing.backend_suite import FREE, eventually


@pytest.fixture
def clock() -> Iterator[VirtualClock]:
    with virtual_clock() as clock:
        yield clock


@dataclass(slots=True)
class Bench:
    clock: VirtualClock
    driver: MemoryDriver
    backend: LocalBackend
    template: str

    async def create(self, deadline: SandboxDeadline | None) -> SandboxInfo:
        return await self.backend.sandboxes.create(SandboxSpec.from_template(self.template, deadline=deadline))

    async def ended(self, info: SandboxInfo) -> str:
        """How it ended, once it has."""

        async def gone() -> bool:
            return not await self.driver.held()

        await eventually(gone)
        with pytest.raises(NotFound) as caught:
            await self.backend.sandboxes.inspect(info.id)
        return caught.value.detail

    async def alive(self, info: SandboxInfo) -> bool:
        return info.id in [found.id for found in await self.backend.sandboxes.list(SandboxFilter())]


async def _open(clock: VirtualClock, driver: MemoryDriver, state: Path, policies: Policies) -> LocalBackend:
    backend = LocalBackend(driver=driver, preparer=MemoryRootPreparer(), state_dir=state, clock=clock)
    await backend.start(policies)
    return backend


@pytest.fixture
async def bench(clock: VirtualClock, tmp_path: Path) -> AsyncIterator[Bench]:
    driver = MemoryDriver()
    backend = await _open(clock, driver, tmp_path / "state", FREE)
    template = await backend.templates.prepare(TemplateSpec.host())
    yield Bench(clock, driver, backend, template.id)
    await backend.aclose(kill_all=True)


@pytest.mark.thorough
async def test_a_sandbox_lives_until_its_deadline_and_not_longer(bench: Bench) -> None:
    info = await bench.create(Timeout(100))
    await bench.clock.advance(99.9)
    assert await bench.alive(info)
    await bench.clock.advance(0.2)
    assert "deadline" in await bench.ended(info)


@pytest.mark.thorough
async def test_a_deadline_at_an_instant_is_that_instant(bench: Bench) -> None:
    info = await bench.create(At(bench.clock.now() + timedelta(hours=1)))
    await bench.clock.advance(3599)
    assert await bench.alive(info)
    await bench.clock.advance(2)
    assert "deadline" in await bench.ended(info)


@pytest.mark.thorough
async def test_without_a_wish_the_runtimes_default_applies(bench: Bench) -> None:
    info = await bench.create(None)
    await bench.clock.advance(299)
    assert await bench.alive(info)
    await bench.clock.advance(2)
    assert "deadline" in await bench.ended(info)


@pytest.mark.thorough
async def test_never_is_never(bench: Bench) -> None:
    info = await bench.create(Never())
    await bench.clock.advance(10 * 365 * 24 * 3600.0)
    assert await bench.alive(info)


async def test_a_renewed_sandbox_outlives_its_first_deadline(bench: Bench) -> None:
    info = await bench.create(Timeout(10))
    await bench.clock.advance(9)
    await bench.backend.sandboxes.update_deadline(info.id, Timeout(10))
    await bench.clock.advance(9)
    assert await bench.alive(info)
    await bench.clock.advance(2)
    assert "deadline" in await bench.ended(info)


async def test_an_earlier_deadline_is_not_missed_behind_a_later_one(bench: Bench) -> None:
    late = await bench.create(Timeout(1000))
    early = await bench.create(Timeout(10))
    await bench.clock.advance(11)

    async def only_late() -> bool:
        return list(await bench.driver.held()) == [late.id]

    await eventually(only_late)
    assert await bench.alive(late)
    assert not await bench.alive(early)


async def test_an_instance_that_dies_by_itself_is_told_with_its_cause(bench: Bench) -> None:
    info = await bench.create(Never())
    await bench.driver.crash(info.id, EndCause.OUT_OF_MEMORY, "it wanted more than 512 MiB")

    async def failed() -> bool:
        return (await bench.backend.sandboxes.inspect(info.id)).state is SandboxState.FAILED

    await eventually(failed)
    record = await bench.backend.sandboxes.inspect(info.id)
    assert record.end_cause is EndCause.OUT_OF_MEMORY
    assert record.end_detail == "it wanted more than 512 MiB"
