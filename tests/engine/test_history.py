"""The journal as callers read it, and what is kept of a sandbox after its end."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from firkin.engine.database import MIGRATIONS, Database
from firkin.engine.records import Records
from firkin.law.events import JournalQuery, LifecycleEntry
from firkin.law.ids import SandboxId
from firkin.law.lifecycle_events import (
    CREATED,
    EVENT_TYPES,
    KILLED,
    PAUSED,
    RESUMED,
    event_body,
    event_states,
    event_type,
)
from firkin.law.logs import LogFilter, LogSource
from firkin.law.processes import Command
from firkin.law.sandboxes import DeleteOptions, SandboxSpec
from firkin.law.snapshots import PauseOptions
from firkin.law.states import SandboxState
from tests.engine.conftest import SPEC, TEMPLATE, Engine, engine_over

_S = SandboxState


async def _life(engine: Engine, owner: str, **metadata: str) -> SandboxId:
    spec = SandboxSpec.from_template(TEMPLATE, owner=owner, metadata=metadata)
    info = await engine.backend.sandboxes.create(spec)
    pauses = engine.backend.pauses
    assert pauses is not None
    await pauses.pause(info.id, PauseOptions(actor=f"key {owner}"))
    await pauses.resume(info.id)
    await engine.backend.sandboxes.delete(info.id, DeleteOptions(force=True, actor=f"key {owner}"))
    return info.id


async def test_the_journal_is_read_by_owner_sandbox_state_and_place(engine: Engine) -> None:
    ann, bob = await _life(engine, "ann"), await _life(engine, "bob")
    events = engine.backend.events
    everything = await events.journal(JournalQuery())
    assert [entry.number for entry in everything] == sorted({entry.number for entry in everything})
    assert {entry.sandbox_id for entry in everything} == {ann, bob}
    of_ann = await events.journal(JournalQuery(owner="ann"))
    assert {(entry.owner, entry.sandbox_id, entry.template_id) for entry in of_ann} == {("ann", ann, TEMPLATE)}
    assert [entry.became for entry in of_ann] == [
        _S.CREATING, _S.RUNNING, _S.PAUSED, _S.RUNNING, _S.STOPPED, _S.DELETED,
    ]  # fmt: skip
    assert of_ann[0].was is None
    assert await events.journal(JournalQuery(sandbox_id=bob, owner="ann")) == []
    paused = await events.journal(JournalQuery(became=frozenset({_S.PAUSED})))
    assert [(entry.sandbox_id, entry.actor) for entry in paused] == [(ann, "key ann"), (bob, "key bob")]
    newest = await events.journal(JournalQuery(newest_first=True, offset=1, limit=3))
    assert list(newest) == list(reversed(everything))[1:4]
    after = everything[4].number
    assert list(await events.journal(JournalQuery(after=after))) == list(everything)[5:]
    assert await events.journal(JournalQuery(limit=0)) == []


async def test_events_have_the_names_that_e2b_gives_them(engine: Engine) -> None:
    sandbox_id = await _life(engine, "ann", team="blue")
    entries = await engine.backend.events.journal(JournalQuery())
    named = [(event_type(entry), entry) for entry in entries if event_type(entry) is not None]
    assert [name for name, _ in named] == [CREATED, PAUSED, RESUMED, KILLED]
    info = (await engine.backend.sandboxes.history(sandbox_id)).info
    body = event_body(named[-1][1], info)
    assert body == event_body(named[-1][1], info)
    assert (body["sandbox_id"], body["sandboxId"], body["sandbox_team_id"]) == (sandbox_id, sandbox_id, "ann")
    data = body["event_data"]
    assert isinstance(data, dict)
    assert data["sandbox_metadata"] == {"team": "blue"}
    assert data["actor"] == "key ann"
    assert data["execution"]["execution_time"] >= 0
    assert len({event_body(entry, info)["id"] for _, entry in named}) == 4
    assert {body["sandbox_execution_id"] for body in (event_body(entry, None) for _, entry in named)} == {
        body["sandboxExecutionId"]
    }
    assert all(event_states(name) for name in EVENT_TYPES)


async def test_an_event_tells_of_the_run_that_ended_and_of_none_where_nothing_ran(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    pauses = engine.backend.pauses
    assert pauses is not None
    await pauses.pause(info.id, PauseOptions())
    await pauses.resume(info.id)
    await pauses.pause(info.id, PauseOptions())
    await engine.backend.sandboxes.delete(info.id, DeleteOptions(force=True))
    entries = await engine.backend.events.journal(JournalQuery(sandbox_id=info.id))
    began = {entry.number: entry.at for entry in entries if entry.became is _S.RUNNING}
    first, second = began.values()
    runs = {event_type(entry): entry.run_began for entry in entries if event_type(entry)}
    assert [entry.run_began for entry in entries if entry.became is _S.PAUSED] == [first, second]
    assert runs[KILLED] is None
    last = (await engine.backend.sandboxes.history(info.id)).info
    bodies = {event_type(entry): event_body(entry, last)["event_data"] for entry in entries}
    assert "execution" in bodies[PAUSED]  # type: ignore[operator]
    assert "execution" not in bodies[KILLED]  # type: ignore[operator]


def test_a_create_that_failed_was_never_created_nor_killed() -> None:
    entry = LifecycleEntry(
        number=1, sandbox_id=SandboxId("a"), at=datetime.now(UTC), was=_S.CREATING, became=_S.FAILED, cause="", actor=""
    )
    assert event_type(entry) is None


async def test_the_last_log_entries_outlive_the_end_and_a_restart_for_as_long_as_the_end(tmp_path: Path) -> None:
    async with engine_over(tmp_path / "state") as engine:
        info = await engine.backend.sandboxes.create(SPEC)
        for _ in range(100):
            await engine.backend.processes.run(info.id, Command.shell("true"))
        await engine.backend.sandboxes.delete(info.id, DeleteOptions(force=True))
    async with engine_over(tmp_path / "state") as again:
        found = await again.backend.logs.list(LogFilter(sandbox_id=info.id))
        assert [entry.source for entry in found].count(LogSource.PROCESS) == 50
        assert found[0].message == "creating: create requested"
        assert found[-1].message.startswith("deleted: ")
        assert [entry.observed_at for entry in found] == sorted(entry.observed_at for entry in found)
        assert await again.node.records.forget_ended(datetime.now(UTC) + timedelta(seconds=1)) == 1
        assert await again.backend.logs.list(LogFilter(sandbox_id=info.id)) == []
        assert await again.backend.events.journal(JournalQuery()) == []


async def test_an_older_state_database_gets_owners_and_templates_for_its_journal(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    old = sqlite3.connect(path)
    for number, text in enumerate(MIGRATIONS[:2]):
        old.executescript(f"BEGIN; {text} PRAGMA user_version={number + 1}; COMMIT;")
    old.execute(
        "INSERT INTO sandboxes (id, state, info, origin) VALUES ('a', 'running', ?, '{}')",
        ('{"owner": "ann", "template_id": "base"}',),
    )
    for sandbox in ("a", "b"):
        old.execute(
            "INSERT INTO journal (sandbox_id, at, was, became, cause, actor) VALUES (?, 1, '', 'creating', 'c', 'x')",
            (sandbox,),
        )
    old.commit()
    old.close()
    database = await Database.open(path)
    try:
        first, second = await Records(database).entries(JournalQuery())
        assert (first.owner, first.template_id) == ("ann", "base")
        assert (second.owner, second.template_id) == ("", None)
        assert await Records(database).last_number() == 2
    finally:
        await database.aclose()


async def test_nobody_else_can_read_the_state_database(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.touch(0o644)
    database = await Database.open(path)
    await database.run(lambda connection: connection.execute("CREATE TABLE t (x)"))
    try:
        modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
        assert modes == dict.fromkeys(modes, 0o600)
        assert len(modes) == 3
    finally:
        await database.aclose()


async def test_what_nobody_waits_for_is_committed_before_the_end_and_its_failure_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = await Database.open(tmp_path / "state.db")
    records = Records(database)
    database.post(lambda connection: connection.execute("INSERT INTO nowhere VALUES (1)"))
    records.keep_peak(SandboxId("a"), 7)
    records.keep_peak(SandboxId("a"), 5)
    await database.aclose()
    assert "not recorded" in caplog.text
    records.keep_peak(SandboxId("a"), 9)
    again = await Database.open(tmp_path / "state.db")
    assert (await Records(again).remains("a")).peak_memory_bytes == 7
    await again.aclose()


async def test_the_log_and_the_history_tell_a_change_at_the_same_moment(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SandboxSpec.from_template(TEMPLATE))
    told = (await engine.backend.sandboxes.history(info.id)).changes
    lines = await engine.backend.logs.list(LogFilter(sandbox_id=info.id, source=LogSource.RUNTIME))
    assert [line.observed_at for line in lines] == [change.at for change in told]
