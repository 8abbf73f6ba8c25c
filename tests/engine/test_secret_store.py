"""Secrets at rest: sealed, bound to their place, counted, and told of."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from firkin.engine.clock import SystemClock
from firkin.engine.database import Database
from firkin.engine.records import Records
from firkin.engine.sealing import CannotOpen, Seal
from firkin.engine.secret_store import SecretStore
from firkin.law.errors import AlreadyExists, CapacityRejected, InvalidSpec, IoFailure, NotFound
from firkin.law.ids import SecretName
from firkin.law.secrets import MAX_SECRET_BYTES, MAX_SECRETS, SecretSpec
from tests.engine.conftest import engine_over

VALUE = "sk-live-51H8xkmoriarty"
KEY = b"k" * 32


def spec(name: str = "key", value: str = VALUE, owner: str = "alice") -> SecretSpec:
    return SecretSpec(name=SecretName(name), value=value, owner=owner)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "state.db")
    yield opened
    await opened.aclose()


@pytest.fixture
def store(database: Database) -> SecretStore:
    return SecretStore(Records(database), clock=SystemClock(), server_secret=KEY)


async def test_a_value_comes_back_to_the_gateway_only(store: SecretStore) -> None:
    info = await store.create(spec())
    assert await store.values("alice", {"key", "other"}) == {"key": VALUE}
    assert await store.values("bob", {"key"}) == {}
    for shown in (repr(info), repr(await store.list("alice")), repr(spec()), repr(await store.get("alice", "key"))):
        assert VALUE not in shown


async def test_no_file_of_the_state_has_a_value(store: SecretStore, tmp_path: Path) -> None:
    await store.create(spec())
    await store.update("alice", "key", VALUE + "2")
    for path in tmp_path.rglob("*"):
        assert VALUE.encode() not in path.read_bytes()


async def test_each_value_is_a_version(store: SecretStore) -> None:
    first = await store.create(spec())
    second = await store.update("alice", first.id, "another", {"team": "a"})
    assert (first.version, second.version, second.metadata) == (1, 2, {"team": "a"})
    third = await store.update("alice", "KEY", "third")
    assert (third.version, third.metadata, third.created_at) == (3, {"team": "a"}, first.created_at)
    assert third.updated_at > first.updated_at
    assert await store.values("alice", {"key"}) == {"key": "third"}


async def test_a_name_is_taken_once_for_each_owner(store: SecretStore) -> None:
    await store.create(spec())
    with pytest.raises(AlreadyExists):
        await store.create(spec("KEY"))
    await store.create(spec(owner="bob"))


async def test_another_owner_s_secret_is_none(store: SecretStore) -> None:
    info = await store.create(spec())
    for name in (info.id, "key", "never"):
        with pytest.raises(NotFound):
            await store.get("bob", name)
        with pytest.raises(NotFound):
            await store.update("bob", name, "x")
        with pytest.raises(NotFound):
            await store.delete("bob", name)
    await store.delete("alice", info.id)
    assert await store.list("alice") == []


async def test_a_row_moved_to_another_place_does_not_open(store: SecretStore, database: Database) -> None:
    await store.create(spec("mine", owner="bob"))
    await store.create(spec("theirs", value="bobs"))
    moved = "UPDATE secrets SET sealed = (SELECT sealed FROM secrets WHERE name = 'mine') WHERE name = 'theirs'"
    await database.run(lambda connection: connection.execute(moved))
    with pytest.raises(IoFailure, match="set its value again") as refused:
        await store.values("alice", {"theirs"})
    assert VALUE not in str(refused.value)


async def test_another_server_s_secret_opens_nothing(store: SecretStore, database: Database) -> None:
    await store.create(spec())
    other = SecretStore(Records(database), clock=SystemClock(), server_secret=b"o" * 32)
    with pytest.raises(IoFailure):
        await other.values("alice", {"key"})


def test_two_seals_of_the_same_differ_and_a_changed_one_does_not_open() -> None:
    seal = Seal(KEY)
    one, two = seal.close(VALUE, "a", "b"), seal.close(VALUE, "a", "b")
    assert one != two
    assert seal.open(one, "a", "b") == VALUE
    for broken in (one[:-1], one[:5], bytes([one[0] ^ 1]) + one[1:]):
        with pytest.raises(CannotOpen):
            seal.open(broken, "a", "b")
    with pytest.raises(CannotOpen):
        seal.open(one, "ab", "")


@pytest.mark.parametrize("value", ["", "a\nb", "a\r", "\0", " a", "x" * (MAX_SECRET_BYTES + 1), "é" * MAX_SECRET_BYTES])
def test_a_value_that_no_header_can_have_is_refused_without_being_said(value: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        spec(value=value)
    assert len(value) < 3 or value not in str(refused.value)


@pytest.mark.parametrize("name", ["", "sec_mine", "a{b", "a}b", "a\nb", "x" * 129])
def test_a_name_that_no_placeholder_can_have_is_refused(name: str) -> None:
    with pytest.raises(InvalidSpec):
        SecretName(name)


async def test_the_number_of_secrets_is_bounded(store: SecretStore, database: Database) -> None:
    def fill(connection: sqlite3.Connection) -> None:
        now = datetime.now(UTC).timestamp()
        rows = [(f"sec_{n}", "alice", f"n{n}", 1, "{}", now, now, b"") for n in range(MAX_SECRETS)]
        connection.executemany("INSERT INTO secrets VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    await database.run(fill)
    with pytest.raises(CapacityRejected):
        await store.create(spec())
    await store.create(spec(owner="bob"))


async def test_who_cares_is_told_of_every_change(store: SecretStore) -> None:
    told: list[str] = []

    async def changed(owner: str) -> None:
        told.append(owner)

    store.changed = changed
    await store.create(spec())
    await store.update("alice", "key", "x")
    await store.delete("alice", "key")
    assert told == ["alice"] * 3


async def test_no_log_line_has_a_value(store: SecretStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await store.create(spec())
    await store.values("alice", {"key"})
    assert VALUE not in caplog.text


async def test_a_backend_without_a_server_secret_keeps_none(tmp_path: Path) -> None:
    async with engine_over(tmp_path / "state") as engine:
        assert engine.backend.secrets is None
