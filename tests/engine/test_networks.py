"""A sandbox's policy in the engine: what is recorded, what is refused, and what its log says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from firkin.drivers.memory.driver import MemoryDriver, MemoryInstance
from firkin.engine.refusal_lines import AGAIN_AFTER_S, MOST_A_MINUTE, RefusalLines
from firkin.law.errors import BackendFailure, NotFound, UnsupportedCapability, WrongState
from firkin.law.ids import SandboxId
from firkin.law.logs import LogFilter
from firkin.law.network import NetworkPolicy
from firkin.law.network_use import RefusedFlow
from firkin.law.sandboxes import Graceful
from firkin.law.snapshots import PauseOptions
from firkin.testing.virtual_clock import VirtualClock
from tests.engine.conftest import SPEC, Engine, engine_over

ONLINE = NetworkPolicy(internet=True)
FLOW = RefusedFlow(
    destination="9.9.9.9",
    protocol="tcp",
    port=80,
    packets=1,
    at=datetime(2026, 1, 31, tzinfo=UTC),
    rule="no internet access",
)


async def test_an_update_is_recorded_and_told(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    assert (await engine.backend.sandboxes.update_network(info.id, ONLINE)).network == ONLINE
    assert (await engine.backend.sandboxes.inspect(info.id)).network == ONLINE
    changes = (await engine.backend.sandboxes.history(info.id)).changes
    assert changes[-1].cause == "network set: internet"
    network = await engine.backend.sandboxes.network(info.id)
    assert (network.policy, network.use) == (ONLINE, None)


async def test_the_next_server_knows_the_policy(tmp_path: Path) -> None:
    driver = MemoryDriver()
    async with engine_over(tmp_path / "state", driver=driver, kill_all=False) as first:
        info = await first.backend.sandboxes.create(SPEC)
        await first.backend.sandboxes.update_network(info.id, ONLINE)
    async with engine_over(tmp_path / "state", driver=driver) as second:
        assert (await second.backend.sandboxes.inspect(info.id)).network == ONLINE


async def test_a_paused_sandbox_takes_a_policy(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    assert engine.backend.pauses is not None
    await engine.backend.pauses.pause(info.id, PauseOptions(keep_memory=False))
    assert (await engine.backend.sandboxes.update_network(info.id, ONLINE)).network == ONLINE
    with pytest.raises(NotFound):
        await engine.backend.sandboxes.update_network(SandboxId("nothere"), ONLINE)


async def test_what_the_driver_cannot_enforce_changes_nothing(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    with pytest.raises(UnsupportedCapability, match=r"network\.policy"):
        await engine.backend.sandboxes.update_network(info.id, NetworkPolicy(internet=True, deny_out=("9.9.9.9",)))
    assert (await engine.backend.sandboxes.inspect(info.id)).network == info.network


async def test_a_sandbox_that_has_ended_takes_no_policy(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    await engine.backend.sandboxes.stop(info.id, Graceful(0.1))
    with pytest.raises((WrongState, NotFound)):
        await engine.backend.sandboxes.update_network(info.id, ONLINE)


async def test_a_policy_that_fails_is_not_recorded_but_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: MemoryInstance, policy: NetworkPolicy) -> None:
        raise BackendFailure("set the network policy", "fk1", "the kernel refused, so it reaches nothing")

    info = await engine.backend.sandboxes.create(SPEC)
    monkeypatch.setattr(MemoryInstance, "set_network", refuse)
    with pytest.raises(BackendFailure):
        await engine.backend.sandboxes.update_network(info.id, ONLINE)
    assert (await engine.backend.sandboxes.inspect(info.id)).network == info.network
    assert any("it reaches nothing" in line for line in await _lines(engine, info.id))


async def _lines(engine: Engine, sandbox_id: SandboxId) -> list[str]:
    return [entry.message for entry in await engine.backend.logs.list(LogFilter(sandbox_id=sandbox_id))]


async def test_each_destination_is_told_once_a_minute(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with engine_over(tmp_path / "state", clock=clock) as engine:
        info = await engine.backend.sandboxes.create(SPEC)
        lines = RefusalLines(engine.node)
        for packets in range(1, 4):
            lines.tell(info.id, [replace(FLOW, packets=packets)])
        told = [line for line in await _lines(engine, info.id) if line.startswith("refused")]
        assert told == ["refused: tcp to 9.9.9.9 port 80: no internet access"]
        await clock.advance(AGAIN_AFTER_S)
        lines.tell(info.id, [replace(FLOW, packets=3)])  # nothing new
        lines.tell(info.id, [replace(FLOW, packets=4)])
        assert len([line for line in await _lines(engine, info.id) if line.startswith("refused")]) == 2


async def test_of_many_destinations_a_few_are_told(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    flows = [replace(FLOW, destination=f"9.9.9.{number}", port=0, protocol="icmp") for number in range(60)]
    RefusalLines(engine.node).tell(info.id, flows)
    told = [line for line in await _lines(engine, info.id) if line.startswith("refused")]
    assert len(told) == MOST_A_MINUTE
    assert told[0] == "refused: icmp to 9.9.9.59: no internet access"
