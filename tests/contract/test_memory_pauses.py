"""Pauses of the engine over the memory driver: on a clock that the test moves, and with a driver that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver, MemoryRootPreparer
from firkin.engine.backend import LocalBackend
from firkin.law.errors import BackendFailure, FirkinError, IoFailure, SnapshotIntegrityFailure
from firkin.law.ids import SandboxId, SnapshotId
from firkin.law.processes import ById, Command
from firkin.law.sandboxes import Lifecycle, Never, OnTimeout, SandboxDeadline, SandboxInfo, SandboxSpec, Timeout
from firkin.law.snapshots import ForkOptions, PauseOptions, ResumeOptions, SnapshotFilter, SnapshotOptions
from firkin.law.states import SandboxState
from firkin.law.templates import TemplateSpec
from firkin.testing import VirtualClock, virtual_clock
from firkin.testing.backend_suite import FREE, eventually, said

FAULT = BackendFailure("do it", "memory", "as the test wished")


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

    async def create(self, deadline: SandboxDeadline, **lifecycle: bool) -> SandboxInfo:
        wish = Lifecycle(on_timeout=OnTimeout.PAUSE if lifecycle.pop("pauses", False) else OnTimeout.KILL, **lifecycle)
        spec = SandboxSpec.from_template(self.template, deadline=deadline, lifecycle=wish)
        return await self.backend.sandboxes.create(spec)

    async def becomes(self, sandbox_id: SandboxId, state: SandboxState) -> None:
        async def there() -> bool:
            return await self.state(sandbox_id) is state

        await eventually(there)

    async def state(self, sandbox_id: SandboxId) -> SandboxState:
        return (await self.backend.sandboxes.inspect(sandbox_id)).state

    async def pause(self, sandbox_id: SandboxId, *, keep_memory: bool = True) -> None:
        assert self.backend.pauses is not None
        await self.backend.pauses.pause(sandbox_id, PauseOptions(keep_memory=keep_memory))

    async def resume(self, sandbox_id: SandboxId, options: ResumeOptions | None = None) -> SandboxInfo:
        assert self.backend.pauses is not None
        return await self.backend.pauses.resume(sandbox_id, options)


@pytest.fixture
async def bench(clock: VirtualClock, tmp_path: Path) -> AsyncIterator[Bench]:
    driver = MemoryDriver()
    state = tmp_path / "state"
    backend = LocalBackend(driver=driver, preparer=MemoryRootPreparer(), state_dir=state, clock=clock)
    await backend.start(FREE)
    template = await backend.templates.prepare(TemplateSpec.host())
    yield Bench(clock, driver, backend, template.id)
    await backend.aclose(kill_all=True)


@pytest.mark.thorough
@pytest.mark.parametrize("keep_memory", [True, False])
async def test_years_pass_over_a_paused_sandbox(bench: Bench, keep_memory: bool) -> None:
    info = await bench.create(Timeout(100))
    await bench.pause(info.id, keep_memory=keep_memory)
    await bench.clock.advance(5 * 365 * 24 * 3600.0)
    assert await bench.state(info.id) is SandboxState.PAUSED


@pytest.mark.thorough
@pytest.mark.parametrize("keep_memory", [True, False])
async def test_a_resumed_sandbox_lives_as_long_as_the_resume_says(bench: Bench, keep_memory: bool) -> None:
    info = await bench.create(Timeout(100), pauses=True)
    await bench.pause(info.id, keep_memory=keep_memory)
    await bench.clock.advance(90)
    await bench.resume(info.id, ResumeOptions(deadline=Timeout(50)))
    await bench.clock.advance(49)
    assert await bench.state(info.id) is SandboxState.RUNNING
    await bench.clock.advance(2)
    await bench.becomes(info.id, SandboxState.PAUSED)


async def test_a_deadline_that_pauses_does_so_each_time(bench: Bench) -> None:
    info = await bench.create(Timeout(10), pauses=True, keep_memory=False)
    for _ in range(3):
        await bench.clock.advance(11)
        await bench.becomes(info.id, SandboxState.PAUSED)
        await bench.resume(info.id, ResumeOptions(deadline=Timeout(10)))
    assert await bench.state(info.id) is SandboxState.RUNNING


@pytest.mark.thorough
async def test_a_programs_own_deadline_does_not_pass_while_it_is_paused(bench: Bench) -> None:
    info, processes = await bench.create(Never()), bench.backend.processes
    started = await processes.start(info.id, replace(Command.argv("sleep", "1000"), timeout_s=0.4))
    await bench.pause(info.id)
    await asyncio.sleep(0.5)
    await bench.resume(info.id)
    assert started.id in [process.id for process in await processes.list(info.id)]
    async with asyncio.timeout(5):
        assert not (await processes.wait(info.id, ById(started.id))).ok


async def test_a_sandbox_that_cannot_be_frozen_runs_on(bench: Bench) -> None:
    info = await bench.create(Never())
    bench.driver.faults.fail_next_freeze(FAULT)
    with pytest.raises(FirkinError):
        await bench.pause(info.id)
    assert await bench.state(info.id) is SandboxState.RUNNING
    assert await said(bench.backend.processes, info.id, "echo well") == "well\n"
    await bench.pause(info.id)


async def test_a_pause_at_the_deadline_that_failed_is_tried_again(bench: Bench) -> None:
    info = await bench.create(Timeout(10), pauses=True)
    bench.driver.faults.fail_next_freeze(FAULT)
    await bench.clock.advance(11)
    assert await bench.state(info.id) is SandboxState.RUNNING
    await bench.clock.advance(30)
    await bench.becomes(info.id, SandboxState.PAUSED)


async def test_a_boot_that_fails_leaves_it_paused_with_its_files(bench: Bench) -> None:
    info = await bench.create(Never())
    await said(bench.backend.processes, info.id, "echo kept > /tmp/kept")
    await bench.pause(info.id, keep_memory=False)
    bench.driver.faults.fail_next_boot(FAULT)
    with pytest.raises(FirkinError):
        await bench.resume(info.id)
    assert await bench.state(info.id) is SandboxState.PAUSED
    await bench.resume(info.id)
    assert await said(bench.backend.processes, info.id, "cat /tmp/kept") == "kept\n"


@pytest.mark.parametrize("fault", [FAULT, IoFailure("write", "files.tar", "the disk is full"), OSError(5, "I/O error")])
async def test_a_capture_that_fails_leaves_nothing(bench: Bench, tmp_path: Path, fault: Exception) -> None:
    info = await bench.create(Never())
    for attempt in (
        lambda: bench.backend.snapshots.capture(info.id, SnapshotOptions(name="mine")),
        lambda: bench.backend.snapshots.fork(info.id, ForkOptions(count=2)),
    ):
        bench.driver.faults.fail_next_capture(fault)
        with pytest.raises(FirkinError):
            await attempt()
    assert list(await bench.backend.snapshots.list(SnapshotFilter())) == []
    assert list((tmp_path / "state" / "snapshots").iterdir()) == []
    assert list(await bench.driver.held()) == [info.id]
    await bench.backend.snapshots.capture(info.id, SnapshotOptions(name="mine"))


async def test_a_frozen_program_does_nothing(bench: Bench) -> None:
    info = await bench.create(Never())
    loop = "i=0; while true; do i=$((i+1)); echo $i >> /tmp/lines; done"
    await bench.backend.processes.start(info.id, Command.shell(loop))

    async def writes() -> bool:
        return await said(bench.backend.processes, info.id, "[ -s /tmp/lines ]; echo $?") == "0\n"

    await eventually(writes)
    await bench.pause(info.id)
    instance = bench.driver._instances[info.id]
    before = instance.machine.tree.used
    await bench.clock.advance(100)
    assert instance.machine.tree.used == before
    await bench.resume(info.id)

    async def writes_on() -> bool:
        return instance.machine.tree.used > before

    await eventually(writes_on)


async def _broken(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_files_of_deleted_snapshots_and_damaged_archives_do_not_stay(bench: Bench, tmp_path: Path) -> None:
    info = await bench.create(Never())
    snapshots, place = bench.backend.snapshots, tmp_path / "state" / "snapshots"
    ref = await snapshots.capture(info.id, SnapshotOptions())
    archive = await snapshots.export_archive(ref.id)
    data = b"".join([chunk async for chunk in archive.chunks])
    for damaged in (data[: len(data) // 2], b"\xff" + data[1:], data[:5000] + b"\xff" + data[5001:]):
        with pytest.raises(SnapshotIntegrityFailure):
            await snapshots.import_archive(SnapshotId("arrived"), replace(archive, chunks=_broken(damaged)))
    assert [path.name for path in place.iterdir()] == [ref.id]
    await snapshots.delete(ref.id)

    async def empty() -> bool:
        return not list(place.iterdir())

    await eventually(empty)
