"""The disk below the state folder fills up: nothing that happened is forgotten."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver
from firkin.engine import transactions
from firkin.engine.database import Database
from firkin.engine.ledger import Why
from firkin.engine.transactions import Job
from firkin.law.errors import HostDiskFull, IoFailure, NotFound
from firkin.law.events import JournalQuery
from firkin.law.ids import SandboxId
from firkin.law.processes import Signal
from firkin.law.sandboxes import DeleteOptions, Graceful
from firkin.law.states import EndCause, SandboxState
from tests.engine.conftest import SPEC, Engine, engine_over, eventually
from tests.engine.full_disks import Disk, a_disk


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return a_disk(monkeypatch)


def _facts(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM facts ORDER BY name")]


def _fact(name: str) -> Job[object]:
    return lambda connection: connection.execute("INSERT INTO facts VALUES (?, '')", (name,))


async def test_what_a_full_disk_refuses_is_said_without_a_path_and_may_be_tried_again(
    tmp_path: Path, disk: Disk
) -> None:
    database = await Database.open(tmp_path / "state.db")
    disk.full = True
    with pytest.raises(HostDiskFull, match="the disk of the host is full; free some space") as refused:
        await database.run(_fact("a"))
    assert str(tmp_path) not in str(refused.value)
    assert await database.run(_facts) == []
    disk.full = False
    await database.run(_fact("a"))
    assert await database.run(_facts) == ["a"]
    await database.aclose()


async def test_kept_job_is_seen_at_once_and_written_before_what_comes_later(tmp_path: Path, disk: Disk) -> None:
    database = await Database.open(tmp_path / "state.db")
    await database.run(lambda c: c.execute("CREATE TABLE told (n INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT)"))

    def tell(what: str) -> Job[object]:
        return lambda connection: connection.execute("INSERT INTO told (what) VALUES (?)", (what,))

    def told(connection: sqlite3.Connection) -> list[str]:
        return [what for (what,) in connection.execute("SELECT what FROM told ORDER BY n")]

    disk.full = True
    assert not await database.keep(tell("first"))
    database.post(tell("second"), kept=True)
    assert await database.run(told) == ["first", "second"]
    assert await database.run(told, numbered=True) == []
    disk.full = False
    await database.run(tell("third"))
    with sqlite3.connect(tmp_path / "state.db") as other:
        assert told(other) == ["first", "second", "third"]
    other.close()
    assert await database.keep(tell("fourth"))
    await database.aclose()


@pytest.mark.thorough
async def test_kept_job_is_written_when_there_is_room_although_nobody_asks_for_anything(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firkin.engine.database._TRY_AGAIN_S", 0.01)
    database = await Database.open(tmp_path / "state.db")
    disk.full = True
    assert not await database.keep(_fact("late"))
    disk.full = False
    other = sqlite3.connect(tmp_path / "state.db")
    await eventually(lambda: _facts(other) == ["late"])
    other.close()
    await database.aclose()


async def test_kept_job_is_written_at_the_close(tmp_path: Path, disk: Disk) -> None:
    database = await Database.open(tmp_path / "state.db")
    disk.full = True
    assert not await database.keep(_fact("late"))
    disk.full = False
    await database.aclose()
    with sqlite3.connect(tmp_path / "state.db") as other:
        assert _facts(other) == ["late"]
    other.close()


async def test_what_can_never_be_written_is_told_at_the_close(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    database = await Database.open(tmp_path / "state.db")
    disk.full = True
    assert not await database.keep(_fact("never"))
    await database.aclose()
    assert "not recorded changes=1" in caplog.text


async def test_only_so_much_is_kept(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "MOST_KEPT", 2)
    database = await Database.open(tmp_path / "state.db")
    disk.full = True
    assert [await database.keep(_fact(name)) for name in "ab"] == [False, False]
    with pytest.raises(HostDiskFull):
        await database.keep(_fact("c"))
    disk.full = False
    assert await database.run(_facts) == ["a", "b"]
    await database.aclose()


async def test_reader_meets_no_neighbour_that_was_refused(tmp_path: Path, disk: Disk) -> None:
    database = await Database.open(tmp_path / "state.db")
    await database.run(_fact("there"))
    disk.full = True
    outcomes = await asyncio.gather(
        database.run(_fact("refused")),
        database.run(_fact("there")),
        database.run(lambda c: c.execute("INSERT INTO nowhere VALUES (1)")),
        database.run(_facts),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [HostDiskFull, sqlite3.IntegrityError, IoFailure, list]
    assert outcomes[-1] == ["there"]
    await database.aclose()


async def _causes(engine: Engine, sandbox_id: SandboxId) -> list[tuple[str, str]]:
    entries = await engine.node.records.entries(JournalQuery(sandbox_id=sandbox_id))
    return [(entry.became.value, entry.cause) for entry in entries]


_KILLED = [("stopped", "requested: killed by key a"), ("deleted", "requested: killed by key a")]


async def test_end_of_a_sandbox_on_a_full_disk_is_explained_and_outlives_the_server(tmp_path: Path, disk: Disk) -> None:
    driver = MemoryDriver()
    async with engine_over(tmp_path / "state", driver=driver, kill_all=False) as engine:
        info = await engine.backend.sandboxes.create(SPEC)
        before = await _causes(engine, info.id)
        disk.full = True
        await engine.backend.sandboxes.delete(info.id, DeleteOptions(force=True, actor="key a"))
        history = await engine.backend.sandboxes.history(info.id)
        assert (history.info.end_cause, history.changes[-1].cause) == (EndCause.REQUESTED, _KILLED[-1][1])
        with pytest.raises(NotFound, match="killed by key a"):
            await engine.backend.sandboxes.inspect(info.id)
        assert await _causes(engine, info.id) == before
        disk.full = False
        await engine.node.records.put_fact("something", "else")
        assert await _causes(engine, info.id) == before + _KILLED
    async with engine_over(tmp_path / "state", driver=driver) as engine:
        assert await _causes(engine, info.id) == before + _KILLED
        assert (await engine.backend.sandboxes.history(info.id)).info.end_cause is EndCause.REQUESTED


async def test_changes_of_a_sandbox_that_fell_on_a_full_disk_keep_their_order(tmp_path: Path, disk: Disk) -> None:
    async with engine_over(tmp_path / "state") as engine:
        info = await engine.backend.sandboxes.create(SPEC)
        resident = engine.node.roster.get(info.id)
        assert resident is not None
        disk.full = True
        engine.node.ledger.jot(resident, why=Why(cause="seen around it"))
        await engine.backend.sandboxes.kill(info.id, Signal.KILL)
        disk.full = False
        await engine.backend.sandboxes.delete(info.id, DeleteOptions())
        told = [cause for _, cause in await _causes(engine, info.id)]
        assert told[-3:] == ["seen around it", "requested: killed", "requested: deleted"]


async def test_stop_that_could_not_be_recorded_leaves_the_sandbox_running(tmp_path: Path, disk: Disk) -> None:
    async with engine_over(tmp_path / "state") as engine:
        info = await engine.backend.sandboxes.create(SPEC)
        disk.full = True
        with pytest.raises(HostDiskFull):
            await engine.backend.sandboxes.stop(info.id, Graceful(0))
        assert (await engine.backend.sandboxes.inspect(info.id)).state is SandboxState.RUNNING
        disk.full = False
        assert (await engine.backend.sandboxes.stop(info.id, Graceful(0))).state is SandboxState.STOPPED
