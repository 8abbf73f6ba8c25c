"""Pauses that stumble, and what the next server makes of one that was interrupted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver
from firkin.engine.database import Database
from firkin.engine.records import Records
from firkin.law.errors import BackendFailure, CapacityRejected, IoFailure, RejectReason, SandboxUnavailable, WrongState
from firkin.law.events import JournalQuery
from firkin.law.ids import SandboxId
from firkin.law.policies import Capacity, Policies
from firkin.law.processes import Command
from firkin.law.sandboxes import DeleteOptions, Lifecycle, OnTimeout, PauseMode, SandboxSpec, Timeout
from firkin.law.snapshots import PauseOptions, ResumeOptions, SnapshotOptions
from firkin.law.states import EndCause, SandboxState
from firkin.lifetimes import children
from firkin.testing.virtual_clock import VirtualClock
from tests.engine.conftest import NO_FLOORS, SPEC, TEMPLATE, Engine, engine_over, eventually

FILES_ONLY = PauseOptions(keep_memory=False)


async def _echo(engine: Engine, sandbox_id: SandboxId, text: str = "echo hi") -> bytes:
    return (await engine.backend.processes.run(sandbox_id, Command.shell(text))).stdout


@pytest.mark.parametrize("keep_memory", [True, False])
async def test_a_pause_that_cannot_be_recorded_did_not_happen(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, keep_memory: bool
) -> None:
    info = await engine.backend.sandboxes.create(SPEC)

    async def full(*_: object) -> None:
        raise IoFailure("write", "the state database", "disk full")

    with monkeypatch.context() as patch:
        patch.setattr(engine.node.records, "change", full)
        with pytest.raises(IoFailure, match="disk full"):
            await engine.backend.pauses.pause(info.id, PauseOptions(keep_memory=keep_memory))
    now = await engine.backend.sandboxes.inspect(info.id)
    assert (now.state, now.pause_mode, now.paused_at) == (SandboxState.RUNNING, None, None)
    assert await _echo(engine, info.id) == b"hi\n"
    await engine.backend.pauses.pause(info.id, PauseOptions(keep_memory=keep_memory))


async def test_a_failed_boot_leaves_the_sandbox_paused_and_its_files(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    await _echo(engine, info.id, "echo kept > /home/user/kept")
    await engine.backend.pauses.pause(info.id, FILES_ONLY)
    engine.driver.faults.fail_next_boot(BackendFailure("boot", "memory", "no luck"))
    with pytest.raises(BackendFailure):
        await engine.backend.pauses.resume(info.id)
    now = await engine.backend.sandboxes.inspect(info.id)
    assert (now.state, now.pause_mode) == (SandboxState.PAUSED, PauseMode.FILESYSTEM)
    assert engine.node.admission.sandboxes == 0
    await engine.backend.pauses.resume(info.id)
    assert await _echo(engine, info.id, "cat /home/user/kept") == b"kept\n"


async def test_paused_ones_make_room_but_keep_what_is_in_memory(tmp_path: Path) -> None:
    capacity = replace(NO_FLOORS, max_sandboxes=1)
    async with engine_over(tmp_path / "state", policies=Policies(capacity=capacity)) as engine:
        first = await engine.backend.sandboxes.create(SPEC)
        with pytest.raises(CapacityRejected):
            await engine.backend.sandboxes.create(SPEC)
        await engine.backend.pauses.pause(first.id, PauseOptions())
        assert engine.node.admission.memory_bytes == first.resources.memory_bytes
        second = await engine.backend.sandboxes.create(SPEC)
        with pytest.raises(CapacityRejected, match="resume"):
            await engine.backend.pauses.resume(first.id)
        assert (await engine.backend.sandboxes.inspect(first.id)).state is SandboxState.PAUSED
        await engine.backend.pauses.pause(second.id, FILES_ONLY)
        assert engine.node.admission.sandboxes == 0
        await engine.backend.pauses.resume(first.id)
        assert await _echo(engine, first.id) == b"hi\n"
        assert engine.node.admission.memory_bytes == first.resources.memory_bytes


async def test_an_expiry_that_a_pause_overtook_does_nothing(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with engine_over(tmp_path / "state", clock=clock) as engine:
        info = await engine.backend.sandboxes.create(SandboxSpec.from_template(TEMPLATE, deadline=Timeout(10)))
        await engine.backend.pauses.pause(info.id, PauseOptions())
        await clock.advance(60)
        assert (await engine.backend.sandboxes.inspect(info.id)).state is SandboxState.PAUSED
        await engine.backend.pauses.resume(info.id, ResumeOptions(deadline=Timeout(5)))
        await clock.advance(4)
        assert await _echo(engine, info.id) == b"hi\n"
        await clock.advance(2)
        await eventually(lambda: info.id not in engine.node.roster)


async def test_deadlines_pause_again_and_again(tmp_path: Path) -> None:
    clock = VirtualClock()
    spec = SandboxSpec.from_template(
        TEMPLATE, deadline=Timeout(10), lifecycle=Lifecycle(on_timeout=OnTimeout.PAUSE, keep_memory=False)
    )
    async with engine_over(tmp_path / "state", clock=clock) as engine:
        info = await engine.backend.sandboxes.create(spec)
        resident = engine.node.roster.get(info.id)
        assert resident is not None
        for _ in range(3):
            await clock.advance(11)
            await eventually(lambda: resident.info.state is SandboxState.PAUSED)
            assert resident.info.pause_mode is PauseMode.FILESYSTEM
            await engine.backend.pauses.resume(info.id, ResumeOptions(deadline=Timeout(10)))
        await engine.backend.snapshots.capture(info.id, SnapshotOptions())  # nothing of the expiry hurries it


async def test_no_more_of_an_owner_are_paused_with_their_memory_than_its_quota(tmp_path: Path) -> None:
    policies = Policies(capacity=NO_FLOORS, most_frozen={"ann": 2})
    async with engine_over(tmp_path / "state", policies=policies) as engine:
        pauses, create = engine.backend.pauses, engine.backend.sandboxes.create
        mine = [await create(replace(SPEC, owner="ann")) for _ in range(4)]
        answers = await asyncio.gather(*(pauses.pause(i.id, PauseOptions()) for i in mine), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, CapacityRejected)]
        assert [one.refusal.reason for one in refused] == [RejectReason.QUOTA] * 2
        assert "of 2); kill some of them, or pause without memory" in str(refused[0])
        frozen, running = (
            [i.id for i, a in zip(mine, answers, strict=True) if (a in refused) is w] for w in (False, True)
        )
        assert await _echo(engine, running[0]) == b"hi\n"
        await pauses.pause(running[0], FILES_ONLY)
        await pauses.pause((await create(replace(SPEC, owner="bob"))).id, PauseOptions())
        await pauses.resume(frozen[0])
        await pauses.pause(running[1], PauseOptions())


async def test_a_deadline_keeps_the_files_alone_where_the_quota_of_frozen_ones_is_used_up(tmp_path: Path) -> None:
    clock = VirtualClock()
    spec = SandboxSpec.from_template(
        TEMPLATE, owner="ann", deadline=Timeout(10), lifecycle=Lifecycle(on_timeout=OnTimeout.PAUSE)
    )
    policies = Policies(capacity=NO_FLOORS, most_frozen={"ann": 1})
    async with engine_over(tmp_path / "state", clock=clock, policies=policies) as engine:
        first = await engine.backend.sandboxes.create(spec)
        await engine.backend.pauses.pause(first.id, PauseOptions())
        second = await engine.backend.sandboxes.create(spec)
        resident = engine.node.roster.get(second.id)
        assert resident is not None
        await clock.advance(11)
        await eventually(lambda: resident.info.state is SandboxState.PAUSED)
        assert resident.info.pause_mode is PauseMode.FILESYSTEM
        [*_, last] = await engine.backend.events.journal(JournalQuery(sandbox_id=second.id))
        assert last.cause == "deadline; only its files are kept, since 1 of its owner's keep their memory already"


async def test_a_pause_that_the_server_did_not_finish_is_finished_by_the_next(tmp_path: Path) -> None:
    driver = MemoryDriver()
    async with engine_over(tmp_path / "state", driver=driver, kill_all=False) as first:
        info = await first.backend.sandboxes.create(SPEC)
        await _echo(first, info.id, "echo kept > /home/user/kept")
        resident = first.node.roster.get(info.id)
        assert resident is not None
        assert resident.instance is not None
        resident.info = replace(resident.info, pause_mode=PauseMode.FILESYSTEM)
        await first.node.ledger.save(resident)
        await resident.instance.destroy()
        resident.info = replace(resident.info, pause_mode=None)
    async with engine_over(tmp_path / "state", driver=driver) as second:
        now = await second.backend.sandboxes.inspect(info.id)
        assert (now.state, now.pause_mode) == (SandboxState.PAUSED, PauseMode.FILESYSTEM)
        await second.backend.pauses.resume(info.id)
        assert await _echo(second, info.id, "cat /home/user/kept") == b"kept\n"


async def test_a_pause_that_had_not_begun_to_end_it_is_undone_by_the_next(tmp_path: Path) -> None:
    driver = MemoryDriver()
    async with engine_over(tmp_path / "state", driver=driver, kill_all=False) as first:
        info = await first.backend.sandboxes.create(SPEC)
        resident = first.node.roster.get(info.id)
        assert resident is not None
        resident.info = replace(resident.info, pause_mode=PauseMode.FILESYSTEM)
        await first.node.ledger.save(resident)
        assert resident.instance is not None
        await resident.instance.freeze()
    async with engine_over(tmp_path / "state", driver=driver) as second:
        now = await second.backend.sandboxes.inspect(info.id)
        assert (now.state, now.pause_mode) == (SandboxState.RUNNING, None)
        assert await _echo(second, info.id) == b"hi\n"


async def test_a_frozen_one_is_frozen_still_for_the_next_server(tmp_path: Path) -> None:
    driver = MemoryDriver()
    async with engine_over(tmp_path / "state", driver=driver, kill_all=False) as first:
        info = await first.backend.sandboxes.create(SPEC)
        await first.backend.processes.start(info.id, Command.shell("sleep 1000"))
        await first.backend.pauses.pause(info.id, PauseOptions())
    async with engine_over(tmp_path / "state", driver=driver) as second:
        assert second.node.admission.sandboxes == 0
        with pytest.raises(WrongState, match="paused"):
            await _echo(second, info.id)
        await second.backend.pauses.resume(info.id)
        assert len(await second.backend.processes.list(info.id)) == 1


async def test_a_resumption_that_nobody_saw_the_end_of_is_undone(tmp_path: Path) -> None:
    driver = MemoryDriver()
    async with engine_over(tmp_path / "state", driver=driver, kill_all=False) as first:
        info = await first.backend.sandboxes.create(SPEC)
        await first.backend.pauses.pause(info.id, FILES_ONLY)
        resident = first.node.roster.get(info.id)
        assert resident is not None
        paused = resident.info
        await first.backend.pauses.resume(info.id)
        resident.info = paused
        resident.ref = None
        await first.node.ledger.save(resident)
    async with engine_over(tmp_path / "state", driver=driver) as second:
        assert await driver.live() == []
        assert (await second.backend.sandboxes.inspect(info.id)).state is SandboxState.PAUSED
        await second.backend.pauses.resume(info.id)
        assert await _echo(second, info.id) == b"hi\n"


async def test_the_host_restarting_is_the_cause_that_is_told(tmp_path: Path) -> None:
    async with engine_over(tmp_path / "state", kill_all=False) as first:
        info = await first.backend.sandboxes.create(SPEC)
    database = await Database.open(tmp_path / "state" / "state.db")
    await Records(database).put_fact("host boot", "another boot")
    await database.aclose()
    async with engine_over(tmp_path / "state", driver=MemoryDriver()) as second:
        found = await second.backend.sandboxes.inspect(info.id)
        assert (found.state, found.end_cause) == (SandboxState.FAILED, EndCause.HOST_RESTARTED)


async def test_kill_cuts_a_capture_short(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    resident = engine.node.roster.get(info.id)
    assert resident is not None
    began = asyncio.Event()

    async def endless(into: Path, *, room_bytes: int) -> None:
        began.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(resident.instance, "capture", endless)
    async with asyncio.timeout(10), children() as tasks:
        capture = tasks.start(_outcome(engine, info.id), name="capture")
        await began.wait()
        await engine.backend.sandboxes.delete(info.id, DeleteOptions(force=True))
        assert isinstance(await capture, SandboxUnavailable)
    assert list((engine.backend._state_dir / "snapshots").iterdir()) == []


async def _outcome(engine: Engine, sandbox_id: SandboxId) -> object:
    try:
        return await engine.backend.snapshots.capture(sandbox_id, SnapshotOptions())
    except Exception as error:  # noqa: BLE001 — it is what is looked at
        return error


async def test_capture_needs_room_on_the_disk(tmp_path: Path) -> None:
    policies = Policies(capacity=Capacity(memory_floor_bytes=0, disk_floor_bytes=1 << 60))
    async with engine_over(tmp_path / "state", policies=policies) as engine:
        engine.node.admission.capacity = NO_FLOORS
        info = await engine.backend.sandboxes.create(SPEC)
        with pytest.raises(CapacityRejected, match="free disk"):
            await engine.backend.snapshots.capture(info.id, SnapshotOptions())
