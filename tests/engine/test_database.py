"""SQLite behind its thread."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from pathlib import Path

import pytest

from firkin.engine.database import Database
from firkin.law.errors import BackendFailure, IoFailure
from tests.engine.conftest import eventually


async def test_answered_is_committed_and_visible_to_others(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "state.db")
    await database.run(lambda c: c.execute("INSERT INTO templates VALUES ('a', '{}')"))
    with sqlite3.connect(tmp_path / "state.db") as other:
        assert other.execute("SELECT id FROM templates").fetchall() == [("a",)]
    other.close()
    await database.aclose()
    await database.aclose()


async def test_one_failed_job_does_not_take_its_neighbours_with_it(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "state.db")

    def half(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO templates VALUES ('half', '{}')")
        raise ValueError("after half of the work")

    jobs = [
        database.run(lambda c: c.execute("INSERT INTO templates VALUES ('a', '{}')")),
        database.run(half),
        database.run(lambda c: c.execute("INSERT INTO templates VALUES ('a', '{}')")),
        database.run(lambda c: c.execute("INSERT INTO nowhere VALUES (1)")),
        database.run(lambda c: c.execute("INSERT INTO templates VALUES ('b', '{}')")),
    ]
    outcomes = await asyncio.gather(*jobs, return_exceptions=True)
    kinds = [type(outcome) for outcome in outcomes if isinstance(outcome, Exception)]
    assert kinds == [ValueError, sqlite3.IntegrityError, IoFailure]
    rows = await database.run(lambda c: c.execute("SELECT id FROM templates ORDER BY id").fetchall())
    assert rows == [("a",), ("b",)]
    await database.aclose()


async def test_cancelled_asker_does_not_stop_the_thread(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "state.db")
    asking = asyncio.create_task(database.run(lambda c: c.execute("INSERT INTO templates VALUES ('a', '{}')")))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await database.run(lambda c: c.execute("SELECT count(*) FROM templates").fetchone()) == (1,)
    await database.aclose()


async def test_closed_database_refuses(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "state.db")
    await database.aclose()
    with pytest.raises(IoFailure, match="closed"):
        await database.run(lambda c: c.execute("SELECT 1"))


async def test_file_of_a_newer_firkin_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "state.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(BackendFailure, match="version 99"):
        await Database.open(tmp_path / "state.db")


async def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"this is not a database" * 100)
    with pytest.raises(IoFailure):
        await Database.open(tmp_path / "state.db")


def _times_open(path: Path) -> int:
    return sum(path.name in os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_link(fd))


def _is_link(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_an_opening_that_is_given_up_leaves_no_thread_and_no_file_open(tmp_path: Path, turns: int) -> None:
    path = tmp_path / "given-up.db"
    opening = asyncio.create_task(Database.open(path))
    for _ in range(turns):
        await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await eventually(lambda: not any(thread.name == "firkin-records" for thread in threading.enumerate()))
    assert _times_open(path) == 0
