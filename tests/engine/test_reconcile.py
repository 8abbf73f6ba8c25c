"""What a server finds when it starts again, state by state."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver, MemoryRootPreparer
from firkin.engine.backend import LocalBackend
from firkin.engine.database import Database
from firkin.engine.records import JournalEntry, Records, SandboxRecord
from firkin.engine.stored_forms import Origin, TemplateRecord
from firkin.law.errors import BackendFailure, NotFound, WrongState
from firkin.law.ids import SandboxId, TemplateId
from firkin.law.policies import HygienePolicy, Policies
from firkin.law.processes import ById, Command
from firkin.law.resources import SandboxResources
from firkin.law.sandboxes import DeleteOptions, Graceful, SandboxFilter, SandboxInfo, SandboxSpec, Timeout
from firkin.law.states import EndCause, SandboxState
from firkin.law.templates import EnvdPlane, HostSource, TemplateInfo, TemplateState
from firkin.testing.virtual_clock import VirtualClock
from tests.engine.conftest import NO_FLOORS, POLICIES, SPEC, TEMPLATE, engine_over, eventually


async def test_running_sandbox_and_its_program_outlive_the_server(tmp_path: Path) -> None:
    driver = MemoryDriver()
    async with engine_over(tmp_path / "state", driver=driver, kill_all=False) as first:
        spec = SandboxSpec.from_template(TEMPLATE, env={"A": "kept"}, metadata={"who": "ann"})
        before = await first.backend.sandboxes.create(spec)
        process = await first.backend.processes.start(before.id, Command.shell("sleep 100"))
    async with engine_over(tmp_path / "state", driver=driver) as second:
        assert await second.backend.sandboxes.inspect(before.id) == before
        assert second.node.admission.sandboxes == 1
        selector = ById(process.id)
        assert [info.id for info in await second.backend.processes.list(before.id)] == [process.id]
        await second.backend.processes.signal(before.id, selector, 9)
        echoed = await second.backend.processes.run(before.id, Command.shell("echo $A"))
        assert echoed.stdout == b"kept\n"
        with pytest.raises(WrongState, match="in use by 1"):
            await second.backend.templates.delete(TEMPLATE)


async def test_sandbox_that_vanished_is_marked_lost(tmp_path: Path) -> None:
    async with engine_over(tmp_path / "state", kill_all=False) as first:
        info = await first.backend.sandboxes.create(SPEC)
    async with engine_over(tmp_path / "state", driver=MemoryDriver()) as second:
        found = await second.backend.sandboxes.inspect(info.id)
        assert (found.state, found.end_cause) == (SandboxState.FAILED, EndCause.LOST)
        assert second.node.admission.sandboxes == 0
        await second.backend.sandboxes.delete(info.id, DeleteOptions())


async def test_sandbox_that_expired_meanwhile_is_ended(tmp_path: Path) -> None:
    driver, clock = MemoryDriver(), VirtualClock()
    async with engine_over(tmp_path / "state", driver=driver, clock=clock, kill_all=False) as first:
        info = await first.backend.sandboxes.create(SandboxSpec.from_template(TEMPLATE, deadline=Timeout(10)))
    await clock.advance(60)
    async with engine_over(tmp_path / "state", driver=driver, clock=clock) as second:
        await eventually(lambda: info.id not in second.node.roster)
        with pytest.raises(NotFound, match="deadline"):
            await second.backend.sandboxes.inspect(info.id)
        assert await driver.held() == []


async def test_deadline_is_armed_again(tmp_path: Path) -> None:
    driver, clock = MemoryDriver(), VirtualClock()
    async with engine_over(tmp_path / "state", driver=driver, clock=clock, kill_all=False) as first:
        info = await first.backend.sandboxes.create(SandboxSpec.from_template(TEMPLATE, deadline=Timeout(100)))
    await clock.advance(60)
    async with engine_over(tmp_path / "state", driver=driver, clock=clock) as second:
        await clock.advance(39)
        assert info.id in second.node.roster
        await clock.advance(2)
        await eventually(lambda: info.id not in second.node.roster)


async def test_stopped_sandbox_keeps_its_files(tmp_path: Path) -> None:
    driver = MemoryDriver()
    async with engine_over(tmp_path / "state", driver=driver, kill_all=False) as first:
        info = await first.backend.sandboxes.create(SPEC)
        await first.backend.sandboxes.stop(info.id, Graceful(0))
    async with engine_over(tmp_path / "state", driver=driver) as second:
        assert (await second.backend.sandboxes.inspect(info.id)).state is SandboxState.STOPPED
        assert await driver.held() == [info.id]
        await second.backend.sandboxes.delete(info.id, DeleteOptions())
        assert await driver.held() == []


async def test_orphan_of_the_driver_is_swept(tmp_path: Path) -> None:
    driver = MemoryDriver()
    async with engine_over(tmp_path / "one", driver=driver, kill_all=False) as first:
        await first.backend.sandboxes.create(SPEC)
    async with engine_over(tmp_path / "two", driver=driver):
        assert await driver.held() == []


async def _write(state_dir: Path, *records: SandboxRecord) -> None:
    database = await Database.open(state_dir / "state.db")
    for record in records:
        info = record.info
        entry = JournalEntry(
            sandbox_id=info.id, at=info.created_at, was="", became=info.state, cause="made by a test", actor="test"
        )
        await Records(database).add(record, entry)
        await Records(database).change(info, record.ref, ())
    await database.aclose()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("state", "became", "cause"),
    [
        (SandboxState.CREATING, None, EndCause.CREATE_FAILED),
        (SandboxState.RUNNING, SandboxState.FAILED, EndCause.LOST),
        (SandboxState.PAUSED, SandboxState.FAILED, EndCause.LOST),
        (SandboxState.STOPPING, SandboxState.FAILED, EndCause.REQUESTED),
        (SandboxState.STOPPED, SandboxState.STOPPED, None),
        (SandboxState.FAILED, SandboxState.FAILED, None),
    ],
)
async def test_every_recorded_state_without_an_instance(
    tmp_path: Path, state: SandboxState, became: SandboxState | None, cause: EndCause | None
) -> None:
    async with engine_over(tmp_path / "state"):
        pass
    info = SandboxInfo(
        id=SandboxId("iold"), state=state, created_at=datetime(2026, 1, 1, tzinfo=UTC), resources=SandboxResources()
    )
    await _write(tmp_path / "state", SandboxRecord(info=info, origin=Origin(directory="", base_env={}), ref=None))
    async with engine_over(tmp_path / "state") as engine:
        last = await engine.node.records.last("iold")
        assert last is not None
        assert last.end_cause is cause
        listed = await engine.backend.sandboxes.list(SandboxFilter())
        assert [found.state for found in listed] == ([] if became is None else [became])


async def test_stop_that_was_interrupted_is_finished(tmp_path: Path) -> None:
    driver = MemoryDriver()
    async with engine_over(tmp_path / "state", driver=driver, kill_all=False) as first:
        info = await first.backend.sandboxes.create(SPEC)
        resident = first.node.roster.get(info.id)
        assert resident is not None
        await first.node.records.change(replace(info, state=SandboxState.STOPPING), resident.ref, ())
    async with engine_over(tmp_path / "state", driver=driver) as second:
        assert (await second.backend.sandboxes.inspect(info.id)).state is SandboxState.STOPPED
        assert await driver.live() == []


async def test_interrupted_preparation_is_failed_and_its_files_removed(tmp_path: Path) -> None:
    async with engine_over(tmp_path / "state"):
        pass
    database = await Database.open(tmp_path / "state" / "state.db")
    info = TemplateInfo(
        id=TemplateId("half"),
        state=TemplateState.PREPARING,
        source=HostSource(),
        data_plane=EnvdPlane(),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    await Records(database).put_template(TemplateRecord(info=info, key="k"))
    await database.aclose()
    leftover = tmp_path / "state" / "templates" / "half" / "0123"
    leftover.mkdir(parents=True)
    (leftover / "file").write_text("x")
    async with engine_over(tmp_path / "state") as engine:
        found = await engine.backend.templates.get(TemplateId("half"))
        assert found.state is TemplateState.FAILED
        assert "interrupted" in found.failure
        assert not leftover.exists()
        assert (await engine.backend.templates.get(TEMPLATE)).state is TemplateState.READY


async def test_second_server_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    async with engine_over(tmp_path / "state"):
        second = LocalBackend(driver=MemoryDriver(), preparer=MemoryRootPreparer(), state_dir=tmp_path / "state")
        with pytest.raises(BackendFailure, match="in use by another Firkin"):
            await second.start(POLICIES)


async def test_kill_on_close_leaves_nothing(tmp_path: Path) -> None:
    driver = MemoryDriver()
    policies = Policies(capacity=NO_FLOORS, hygiene=HygienePolicy(kill_on_close=True))
    async with engine_over(tmp_path / "state", driver=driver, policies=policies, kill_all=False) as first:
        infos = [await first.backend.sandboxes.create(SPEC) for _ in range(5)]
    assert await driver.held() == []
    async with engine_over(tmp_path / "state", driver=driver) as second:
        with pytest.raises(NotFound, match="kill-on-exit"):
            await second.backend.sandboxes.inspect(infos[0].id)


@pytest.mark.thorough
async def test_ends_are_forgotten_after_their_time(tmp_path: Path) -> None:
    clock = VirtualClock()
    policies = Policies(capacity=NO_FLOORS, hygiene=HygienePolicy(ended_kept_s=3600))
    async with engine_over(tmp_path / "state", clock=clock, policies=policies) as first:
        info = await first.backend.sandboxes.create(SPEC)
        await first.backend.sandboxes.delete(info.id, DeleteOptions(force=True))
        await clock.advance(3599)
        assert await first.node.records.last(info.id) is not None
    await clock.advance(10)
    async with engine_over(tmp_path / "state", clock=clock, policies=policies) as second:
        async with asyncio.timeout(5):
            while await second.node.records.last(info.id) is not None:
                pass
        assert await second.node.records.journal(info.id) == []
