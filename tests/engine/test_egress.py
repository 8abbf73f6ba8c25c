"""What the engine makes of gateways: their deaths are events, and no password of a proxy lies readable."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest

from firkin.drivers.memory.driver import MemoryDriver
from firkin.gateway.keeper import DIED
from firkin.law.events import JournalQuery
from firkin.law.ids import SandboxId
from firkin.law.lifecycle_events import UPDATED, event_type
from firkin.law.logs import LogFilter
from firkin.law.network import NetworkPolicy
from firkin.law.sandboxes import Graceful
from tests.engine.conftest import SPEC, Engine, engine_over


class Keeper:
    """An `EgressKeeper` that leads nobody and tells what it is told to tell."""

    def __init__(self) -> None:
        self.tell: Callable[[SandboxId, str], None] = lambda sandbox_id, text: None
        self.led: dict[SandboxId, NetworkPolicy] = {}

    async def lead(
        self, sandbox_id: SandboxId, *, owner: str, policy: NetworkPolicy, secrets: Mapping[str, str]
    ) -> str:
        self.led[sandbox_id] = policy
        return ""

    def report(self, told: Callable[[SandboxId, str], None]) -> None:
        self.tell = told


class LedDriver(MemoryDriver):
    """The memory driver with a gateway."""

    def __init__(self) -> None:
        super().__init__()
        self.keeper = Keeper()

    @property
    def egress(self) -> Keeper:  # type: ignore[override]  # the memory driver has none
        return self.keeper


@pytest.fixture
def driver() -> LedDriver:
    return LedDriver()


@pytest.fixture
async def led(tmp_path: Path, driver: LedDriver) -> AsyncIterator[Engine]:
    async with engine_over(tmp_path / "state", driver=driver) as engine:
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
