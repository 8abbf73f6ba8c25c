"""What the engine makes of gateways: their deaths are events, and no password of a proxy lies readable."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.drivers.memory.driver import MemoryDriver, MemoryInstance
from firkin.engine.database import MIGRATIONS
from firkin.engine.sealed_policies import seal_older
from firkin.engine.sealing import Seal
from firkin.engine.trust import CERTIFICATE
from firkin.gateway.keeper import DIED
from firkin.law.capabilities import Capabilities, CapabilityName
from firkin.law.errors import BackendFailure, FirkinError, InvalidSpec, IoFailure
from firkin.law.events import JournalQuery
from firkin.law.files import ReadOptions
from firkin.law.ids import SandboxId
from firkin.law.lifecycle_events import UPDATED, event_type
from firkin.law.logs import LogFilter
from firkin.law.network import EVERYWHERE, EgressProxy, NetworkPolicy
from firkin.law.sandboxes import Graceful, Timeout
from firkin.law.snapshots import ForkOptions, PauseOptions, RestoreOptions, SnapshotOptions
from firkin.law.states import SandboxState
from tests.engine.conftest import SPEC, Engine, engine_over

KEY = b"k" * 32
PASSWORD = "opensesame-4711"


def proxied(password: str = PASSWORD) -> NetworkPolicy:
    proxy = EgressProxy(address="proxy.test:1080", username="ann", password=password)
    return NetworkPolicy(deny_out=(EVERYWHERE,), egress_proxy=proxy)


class Keeper:
    """An `EgressKeeper` that leads nobody and tells what it is told to tell."""

    def __init__(self) -> None:
        self.tell: Callable[[SandboxId, str], None] = lambda sandbox_id, text: None
        self.led: dict[SandboxId, NetworkPolicy] = {}
        self.certificate = ""
        self.failure: FirkinError | None = None

    async def lead(
        self, sandbox_id: SandboxId, *, owner: str, policy: NetworkPolicy, secrets: Mapping[str, str]
    ) -> str:
        if self.failure is not None:
            raise self.failure
        self.led[sandbox_id] = policy
        return self.certificate

    def report(self, told: Callable[[SandboxId, str], None]) -> None:
        self.tell = told


class LedDriver(MemoryDriver):
    """The memory driver with a gateway."""

    def __init__(self) -> None:
        super().__init__()
        self.keeper = Keeper()

    async def capabilities(self) -> Capabilities:
        return (await super().capabilities()).with_supported(CapabilityName.NETWORK_POLICY)

    @property
    def egress(self) -> Keeper:  # type: ignore[override]  # the memory driver has none
        return self.keeper


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> LedDriver:
    async def agree(self: MemoryInstance, policy: NetworkPolicy) -> None:
        """As if it were enforced."""

    monkeypatch.setattr(MemoryInstance, "set_network", agree)
    return LedDriver()


@pytest.fixture
async def led(tmp_path: Path, driver: LedDriver) -> AsyncIterator[Engine]:
    async with engine_over(tmp_path / "state", driver=driver, server_secret=KEY) as engine:
        yield engine


async def test_a_gateway_s_death_is_an_event_of_each_sandbox(led: Engine, driver: LedDriver) -> None:
    info = await led.backend.sandboxes.create(SPEC)
    driver.keeper.tell(info.id, DIED)
    [*_, last] = await led.backend.events.journal(JournalQuery(sandbox_id=info.id))
    assert (last.cause, last.actor, last.was, last.became) == (DIED, "engine", info.state, info.state)
    assert event_type(last) == UPDATED
    assert (await led.backend.sandboxes.history(info.id)).changes[-1].cause == DIED
    lines = await led.backend.logs.list(LogFilter(sandbox_id=info.id))
    assert [entry.message for entry in lines].count(f"running: {DIED}") == 1


async def test_of_one_that_has_ended_nothing_more_is_told(led: Engine, driver: LedDriver) -> None:
    info = await led.backend.sandboxes.create(SPEC)
    await led.backend.sandboxes.stop(info.id, Graceful(0.1))
    before = await led.backend.events.journal(JournalQuery(sandbox_id=info.id))
    driver.keeper.tell(info.id, DIED)
    driver.keeper.tell(SandboxId("nobody"), DIED)
    assert await led.backend.events.journal(JournalQuery(sandbox_id=info.id)) == before


def assert_unreadable(state_dir: Path, *words: str) -> None:
    for path in state_dir.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [word for word in words if word.encode() in data], path


async def test_no_file_of_the_state_has_a_proxy_s_password(tmp_path: Path, driver: LedDriver) -> None:
    state = tmp_path / "state"
    async with engine_over(state, driver=driver, kill_all=False, server_secret=KEY) as engine:
        backend = engine.backend
        info = await backend.sandboxes.create(replace(SPEC, network=proxied()))
        await backend.sandboxes.update_network(info.id, proxied("second-4711"))
        snapshot = await backend.snapshots.capture(info.id, SnapshotOptions())
        await backend.snapshots.fork(info.id, ForkOptions())
        assert driver.keeper.led[info.id] == proxied("second-4711")
        assert_unreadable(state, PASSWORD, "second-4711")
    assert_unreadable(state, PASSWORD, "second-4711")
    driver.keeper.led.clear()
    async with engine_over(state, driver=driver, server_secret=KEY) as engine:
        assert driver.keeper.led[info.id] == proxied("second-4711"), "the next server knows it"
        made = await engine.backend.snapshots.restore(snapshot.id, RestoreOptions())
        assert driver.keeper.led[made.id] == proxied("second-4711")
        archive = await engine.backend.snapshots.export_archive(snapshot.id)
        assert b"second-4711" not in b"".join([chunk async for chunk in archive.chunks])
        assert_unreadable(state, PASSWORD, "second-4711")


async def test_what_an_older_server_left_readable_is_sealed(tmp_path: Path, driver: LedDriver) -> None:
    state = tmp_path / "state"
    async with engine_over(state, driver=driver, kill_all=False, server_secret=KEY) as engine:
        info = await engine.backend.sandboxes.create(replace(SPEC, network=proxied()))
        snapshot = await engine.backend.snapshots.capture(info.id, SnapshotOptions())
    age(state)
    assert PASSWORD.encode() in b"".join(path.read_bytes() for path in state.glob("state.db*"))
    async with engine_over(state, driver=driver, server_secret=KEY) as engine:
        assert_unreadable(state, PASSWORD, "replaced-4711")
        assert (await engine.backend.sandboxes.inspect(info.id)).network == proxied()
        made = await engine.backend.snapshots.restore(snapshot.id, RestoreOptions())
        assert driver.keeper.led[made.id] == proxied()


def age(state: Path) -> None:
    """Make of it what the schema before would have left: passwords in rows, and in the room that rows gave back."""
    with sqlite3.connect(state / "state.db") as older:
        for table, column in (("sandboxes", "info"), ("snapshots", "record")):
            for password in ("replaced-4711" * 50, PASSWORD):
                older.execute(
                    f"UPDATE {table} SET {column} = json_set({column}, '$.network.egress_proxy.password', ?)",
                    (password,),
                )
                older.commit()
        older.execute(f"PRAGMA user_version = {len(MIGRATIONS) - 1}")
    older.close()


def test_a_state_that_never_was_older_is_not_written_anew(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    for text in MIGRATIONS:
        connection.executescript(text)
    seen: list[str] = []
    connection.set_trace_callback(seen.append)
    seal_older(connection, Seal(KEY))
    assert not any("VACUUM" in statement for statement in seen)
    connection.close()


async def test_another_server_secret_leads_nobody_and_loses_nothing(tmp_path: Path, driver: LedDriver) -> None:
    state = tmp_path / "state"
    async with engine_over(state, driver=driver, kill_all=False, server_secret=KEY) as engine:
        info = await engine.backend.sandboxes.create(replace(SPEC, network=proxied()))
    driver.keeper.led.clear()
    async with engine_over(state, driver=driver, kill_all=False, server_secret=b"o" * 32) as engine:
        assert driver.keeper.led == {}
        await engine.backend.sandboxes.update_deadline(info.id, Timeout(600))
        with pytest.raises(IoFailure, match="set the network policy again"):
            await engine.backend.sandboxes.update_network(
                info.id, (await engine.backend.sandboxes.inspect(info.id)).network
            )
    async with engine_over(state, driver=driver, server_secret=KEY) as engine:
        assert driver.keeper.led == {info.id: proxied()}
        await engine.backend.sandboxes.update_network(info.id, proxied("new"))
        assert driver.keeper.led == {info.id: proxied("new")}


async def test_without_a_server_secret_no_password_is_taken(tmp_path: Path, driver: LedDriver) -> None:
    async with engine_over(tmp_path / "state", driver=driver) as engine:
        with pytest.raises(InvalidSpec, match="this runtime has none"):
            await engine.backend.sandboxes.create(replace(SPEC, network=proxied()))
        await engine.backend.sandboxes.create(replace(SPEC, network=proxied("")))


@pytest.mark.thorough
async def test_a_password_that_could_look_sealed_is_refused(led: Engine) -> None:
    for password in ("\x01sealed:AAAA", "a\nb", "\0"):
        with pytest.raises((InvalidSpec, IoFailure)):
            await led.backend.sandboxes.create(replace(SPEC, network=proxied(password)))


async def test_a_row_moved_to_another_sandbox_does_not_open(tmp_path: Path, driver: LedDriver) -> None:
    state = tmp_path / "state"
    async with engine_over(state, driver=driver, kill_all=False, server_secret=KEY) as engine:
        mine, theirs = [
            await engine.backend.sandboxes.create(replace(SPEC, network=proxied(word))) for word in ("mine", "theirs")
        ]
    with sqlite3.connect(state / "state.db") as other:
        sealed = "SELECT json_extract(info, '$.network.egress_proxy.password') FROM sandboxes WHERE id = ?"
        other.execute(
            f"UPDATE sandboxes SET info = json_set(info, '$.network.egress_proxy.password', ({sealed})) WHERE id = ?",
            (theirs.id, mine.id),
        )
    other.close()
    driver.keeper.led.clear()
    async with engine_over(state, driver=driver, server_secret=KEY):
        assert set(driver.keeper.led) == {theirs.id}


@pytest.mark.parametrize("keep_memory", [True, False], ids=["with memory", "without"])
async def test_an_authority_that_grew_old_in_a_pause_is_replaced_in_the_sandbox(
    led: Engine, driver: LedDriver, keep_memory: bool
) -> None:
    driver.keeper.certificate = "the first"
    info = await led.backend.sandboxes.create(replace(SPEC, network=proxied()))
    resident = led.node.roster.get(info.id)
    assert led.backend.pauses is not None
    assert resident is not None
    assert resident.trusts == "the first"
    await led.backend.pauses.pause(info.id, PauseOptions(keep_memory=keep_memory))
    driver.keeper.certificate = "the second"
    await led.backend.pauses.resume(info.id)
    _, pieces = await led.backend.filesystems.open_read(info.id, CERTIFICATE, ReadOptions())
    assert b"".join([piece async for piece in pieces]) == b"the second"


async def test_a_gateway_in_trouble_keeps_nobody_frozen(led: Engine, driver: LedDriver) -> None:
    info = await led.backend.sandboxes.create(replace(SPEC, network=proxied()))
    assert led.backend.pauses is not None
    await led.backend.pauses.pause(info.id, PauseOptions(keep_memory=True))
    driver.keeper.failure = BackendFailure("lead", "the gateway", "it does not answer")
    assert (await led.backend.pauses.resume(info.id)).state is SandboxState.RUNNING
