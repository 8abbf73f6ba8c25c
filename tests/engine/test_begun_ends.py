"""A server that is killed while it ends sandboxes: the next one knows why they ended."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver
from firkin.engine.begun_ends import SLOTS, BegunEnd, BegunEnds
from firkin.engine.clock import Clock
from firkin.engine.ledger import Why
from firkin.law.errors import NotFound
from firkin.law.ids import SandboxId
from firkin.law.processes import Signal
from firkin.law.sandboxes import DeleteOptions, Graceful, SandboxSpec, Timeout
from firkin.law.states import EndCause, SandboxState
from firkin.testing.virtual_clock import VirtualClock
from tests.engine.conftest import SPEC, TEMPLATE, Engine, engine_over, eventually
from tests.engine.full_disks import a_disk

_WHY = Why.ended(EndCause.REQUESTED, actor="key a", detail="killed by key a")


async def _killed_meanwhile(state: Path, driver: MemoryDriver, *, removes: bool) -> SandboxId:
    """A sandbox that a server had begun to end when it was killed."""
    async with engine_over(state, kill_all=False, driver=driver) as first:
        info = await first.backend.sandboxes.create(SPEC)
        resident = first.node.roster.get(info.id)
        assert resident is not None
        first.node.ledger.begin_end(resident, why=_WHY, removes=removes)
    return info.id


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "still alive"])
async def test_deletion_that_a_killed_server_began_is_finished_with_its_cause(tmp_path: Path, gone: bool) -> None:
    before = MemoryDriver()
    sandbox_id = await _killed_meanwhile(tmp_path / "state", before, removes=True)
    after = MemoryDriver() if gone else before
    async with engine_over(tmp_path / "state", driver=after) as second:
        with pytest.raises(NotFound, match=r"requested \(killed by key a\)"):
            await second.backend.sandboxes.inspect(sandbox_id)
        changes = (await second.backend.sandboxes.history(sandbox_id)).changes
        assert [(change.became, change.actor) for change in changes[-2:]] == [
            (SandboxState.STOPPED, "key a"),
            (SandboxState.DELETED, "key a"),
        ]
        ended = second.node.figures.ended
        assert (ended[EndCause.REQUESTED], ended[EndCause.LOST]) == (1, 0)
        assert await after.held() == []


@pytest.mark.parametrize("halted", [True, False], ids=["halted", "still alive"])
async def test_kill_that_a_killed_server_began_is_finished_and_keeps_the_files(tmp_path: Path, halted: bool) -> None:
    driver = MemoryDriver()
    sandbox_id = await _killed_meanwhile(tmp_path / "state", driver, removes=False)
    if halted:
        await driver.halt(sandbox_id)
    async with engine_over(tmp_path / "state", driver=driver) as second:
        found = await second.backend.sandboxes.inspect(sandbox_id)
        assert (found.state, found.end_cause) == (SandboxState.STOPPED, EndCause.REQUESTED)
        assert await driver.held() == [sandbox_id]


async def test_kill_whose_files_are_gone_has_its_cause_all_the_same(tmp_path: Path) -> None:
    sandbox_id = await _killed_meanwhile(tmp_path / "state", MemoryDriver(), removes=False)
    async with engine_over(tmp_path / "state", driver=MemoryDriver()) as second:
        found = await second.backend.sandboxes.inspect(sandbox_id)
        assert (found.state, found.end_detail) == (SandboxState.FAILED, "killed by key a")


async def test_stop_whose_server_was_killed_keeps_the_files(tmp_path: Path) -> None:
    driver = MemoryDriver()
    async with engine_over(tmp_path / "state", driver=driver, kill_all=False) as first:
        info = await first.backend.sandboxes.create(SPEC)
        await first.backend.sandboxes.stop(info.id, Graceful(0))
        connection = sqlite3.connect(tmp_path / "state" / "state.db")
        connection.execute(
            "UPDATE sandboxes SET state = 'stopping', ended_at = NULL,"
            " info = json_remove(json_set(info, '$.state', 'stopping'), '$.ended_at', '$.end_cause')"
        )
        connection.commit()
        connection.close()
    async with engine_over(tmp_path / "state", driver=driver) as second:
        found = await second.backend.sandboxes.inspect(info.id)
        assert (found.state, found.end_cause) == (SandboxState.STOPPED, EndCause.REQUESTED)
        assert await driver.held() == [info.id]


def _begun(state: Path, sandbox_id: str) -> BegunEnd | None:
    """What a server that started now would find."""
    found = BegunEnds.open(state / "begun-ends")
    found.close()
    return found.left(sandbox_id)


@asynccontextmanager
async def _watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: SandboxSpec, clock: Clock | None = None
) -> AsyncIterator[tuple[Engine, SandboxId, list[BegunEnd | None]]]:
    """A sandbox, and what is written of its end at the moment in which it is destroyed."""
    seen: list[BegunEnd | None] = []
    async with engine_over(tmp_path / "state", clock=clock) as engine:
        info = await engine.backend.sandboxes.create(spec)
        resident = engine.node.roster.get(info.id)
        assert resident is not None
        assert resident.instance is not None
        destroy = resident.instance.destroy

        async def looking() -> None:
            seen.append(_begun(tmp_path / "state", info.id))
            await destroy()

        monkeypatch.setattr(resident.instance, "destroy", looking)
        yield engine, info.id, seen


async def test_cause_is_written_before_anything_is_destroyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with _watched(tmp_path, monkeypatch, SPEC) as (engine, sandbox_id, seen):
        await engine.backend.sandboxes.delete(sandbox_id, DeleteOptions(force=True, actor="key a"))
        assert seen == [
            BegunEnd(end=EndCause.REQUESTED, actor="key a", detail="killed by key a", removes=True),
        ]
        assert _begun(tmp_path / "state", sandbox_id) is None


async def test_deadline_is_written_before_it_destroys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock()
    spec = SandboxSpec.from_template(TEMPLATE, deadline=Timeout(10))
    async with _watched(tmp_path, monkeypatch, spec, clock) as (engine, sandbox_id, seen):
        await clock.advance(11)
        await eventually(lambda: sandbox_id not in engine.node.roster)
        assert seen == [BegunEnd(end=EndCause.DEADLINE, actor="deadline", detail="", removes=True)]


async def test_kill_that_asks_first_is_written_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with _watched(tmp_path, monkeypatch, SPEC) as (engine, sandbox_id, seen):
        await engine.backend.sandboxes.kill(sandbox_id, Signal.TERM)
        assert seen == [BegunEnd(end=EndCause.REQUESTED, actor="caller", detail="killed", removes=False)]


async def test_sandbox_that_lives_on_has_no_begun_end(tmp_path: Path) -> None:
    driver = MemoryDriver()
    async with engine_over(tmp_path / "state", driver=driver, kill_all=False) as first:
        info = await first.backend.sandboxes.create(SPEC)
        resident = first.node.roster.get(info.id)
        assert resident is not None
        first.node.ledger.begin_end(resident, why=_WHY, removes=True)
        await first.backend.sandboxes.update_deadline(info.id, Timeout(100))
    async with engine_over(tmp_path / "state", driver=driver) as second:
        assert (await second.backend.sandboxes.inspect(info.id)).state is SandboxState.RUNNING


_END = BegunEnd(end=EndCause.DEADLINE, actor="deadline", detail="", removes=True)


def test_slots_are_used_again_and_the_oldest_gives_way(tmp_path: Path) -> None:
    first = BegunEnds.open(tmp_path / "begun-ends")
    for number in range(SLOTS + 2):
        first.begin(f"i{number}", _END)
    first.settled("i5")
    first.begin("i6", _END)
    first.close()
    second = BegunEnds.open(tmp_path / "begun-ends")
    assert [number for number in range(SLOTS + 2) if second.left(f"i{number}") is None] == [0, 1, 5]
    second.keep_only({"i7"})
    second.close()
    third = BegunEnds.open(tmp_path / "begun-ends")
    assert [number for number in range(SLOTS + 2) if third.left(f"i{number}") is not None] == [7]
    third.close()


def test_slot_that_nobody_can_read_and_a_file_that_cannot_be_made_stop_no_server(tmp_path: Path) -> None:
    first = BegunEnds.open(tmp_path / "begun-ends")
    first.begin("i1", _END)
    first.begin("i2", replace(_END, detail="x" * 600))
    first.close()
    content = (tmp_path / "begun-ends").read_bytes()
    (tmp_path / "begun-ends").write_bytes(b'{"half' + content[6:])
    second = BegunEnds.open(tmp_path / "begun-ends")
    assert (second.left("i1"), second.left("i2")) == (_END, None)
    second.close()
    third = BegunEnds.open(tmp_path / "nowhere" / "begun-ends")
    third.begin("i1", _END)
    third.settled("i1")
    third.close()


async def test_end_whose_rows_waited_for_a_full_disk_is_known_to_the_server_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, driver = a_disk(monkeypatch), MemoryDriver()
    async with engine_over(tmp_path / "state", driver=driver, kill_all=False) as first:
        info = await first.backend.sandboxes.create(SPEC)
        disk.full = True
        await first.backend.sandboxes.delete(info.id, DeleteOptions(force=True, actor="key a"))
    disk.full = False
    async with engine_over(tmp_path / "state", driver=driver) as second:
        history = await second.backend.sandboxes.history(info.id)
        assert (history.info.state, history.changes[-1].cause) == (SandboxState.DELETED, "requested: killed by key a")
