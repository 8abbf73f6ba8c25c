"""stop, kill and delete are three things; races between them have one order."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver
from firkin.drivers.memory.driver import MemoryInstance
from firkin.engine import endings
from firkin.engine.ledger import Why
from firkin.engine.node import Node
from firkin.engine.roster import Resident
from firkin.law.capabilities import CapabilityName
from firkin.law.driver import BootPlan
from firkin.law.errors import (
    DeadlineExceeded,
    InvalidSpec,
    NotFound,
    ResourceKind,
    SandboxUnavailable,
    UnsupportedCapability,
    WrongState,
)
from firkin.law.events import EventFilter, LifecycleChanged
from firkin.law.ids import SandboxId, SnapshotId
from firkin.law.network import HeaderRule, NetworkPolicy
from firkin.law.processes import Command, Signal
from firkin.law.sandboxes import (
    AttachOptions,
    DeleteOptions,
    ForceAfter,
    FromSnapshot,
    Graceful,
    Isolation,
    SandboxFilter,
    SandboxInfo,
    SandboxSpec,
    VolumeMount,
)
from firkin.law.snapshots import PauseOptions
from firkin.law.states import EndCause, SandboxState
from firkin.testing.virtual_clock import settle
from tests.engine.conftest import SPEC, TEMPLATE, Engine, engine_over, eventually


def _state(engine: Engine, sandbox_id: SandboxId) -> SandboxState | None:
    resident = engine.node.roster.get(sandbox_id)
    return resident and resident.info.state


async def test_stop_keeps_the_record_and_the_files_until_delete(engine: Engine) -> None:
    control = engine.backend.sandboxes
    info = await control.create(SPEC)
    stopped = await control.stop(info.id, Graceful(0.1))
    assert (stopped.state, stopped.end_cause) == (SandboxState.STOPPED, EndCause.REQUESTED)
    assert await engine.driver.held() == [info.id]
    assert await engine.driver.live() == []
    await control.delete(info.id, DeleteOptions())
    assert await engine.leftovers() == []
    with pytest.raises(NotFound, match="requested"):
        await control.inspect(info.id)


async def test_running_sandbox_is_deleted_only_by_force(engine: Engine) -> None:
    control = engine.backend.sandboxes
    info = await control.create(SPEC)
    with pytest.raises(WrongState, match="is running"):
        await control.delete(info.id, DeleteOptions())
    await control.delete(info.id, DeleteOptions(force=True))
    with pytest.raises(NotFound):
        await control.delete(info.id, DeleteOptions(force=True))
    assert await engine.leftovers() == []


@pytest.mark.parametrize("signal", [Signal.KILL, Signal.TERM, Signal.INTERRUPT, 10])
async def test_kill_ends_it_by_any_signal(engine: Engine, signal: Signal | int) -> None:
    control = engine.backend.sandboxes
    info = await control.create(SPEC)
    await engine.backend.processes.start(info.id, Command.shell("sleep 100"))
    killed = await control.kill(info.id, signal)
    assert killed.state is SandboxState.STOPPED
    assert await engine.driver.live() == []


async def test_parallel_kills_agree(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    killed = await asyncio.gather(*(engine.backend.sandboxes.kill(info.id, Signal.KILL) for _ in range(10)))
    assert len({(one.state, one.ended_at) for one in killed}) == 1
    journal = await engine.node.records.journal(info.id)
    assert [entry.became.value for entry in journal] == ["creating", "running", "stopped"]


async def test_kill_cuts_a_graceful_stop_short(engine: Engine) -> None:
    control = engine.backend.sandboxes
    info = await control.create(SPEC)
    await engine.backend.processes.start(info.id, Command.shell("trap '' TERM; sleep 100"))
    stopping = asyncio.create_task(control.stop(info.id, ForceAfter(200)))
    await eventually(lambda: _state(engine, info.id) is SandboxState.STOPPING)
    async with asyncio.timeout(10):
        await control.kill(info.id, Signal.KILL)
        assert (await stopping).state is SandboxState.STOPPED


@pytest.mark.thorough
async def test_walking_away_from_a_stop_does_not_undo_it(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    await engine.backend.processes.start(info.id, Command.shell("trap '' TERM; sleep 100"))
    stopping = asyncio.create_task(engine.backend.sandboxes.stop(info.id, Graceful(0.2)))
    await eventually(lambda: _state(engine, info.id) is SandboxState.STOPPING)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await eventually(lambda: _state(engine, info.id) is SandboxState.STOPPED)


async def test_instance_that_ends_by_itself_is_explained(engine: Engine) -> None:
    events = await engine.backend.events.subscribe(EventFilter())
    info = await engine.backend.sandboxes.create(SPEC)
    await engine.driver.crash(info.id, EndCause.OUT_OF_MEMORY, "512 MiB were not enough")
    await eventually(lambda: _state(engine, info.id) is SandboxState.FAILED)
    seen = await engine.backend.sandboxes.inspect(info.id)
    assert (seen.end_cause, seen.end_detail) == (EndCause.OUT_OF_MEMORY, "512 MiB were not enough")
    with pytest.raises(WrongState, match="out of memory"):
        await engine.backend.processes.run(info.id, Command.shell("true"))
    kinds = [(await anext(events)).kind for _ in range(3)]
    states = [kind.state for kind in kinds if isinstance(kind, LifecycleChanged)]
    assert states == [SandboxState.CREATING, SandboxState.RUNNING, SandboxState.FAILED]
    await eventually(lambda: engine.node.admission.sandboxes == 0)
    await engine.backend.sandboxes.delete(info.id, DeleteOptions())
    assert await engine.leftovers() == []


class Hanging(MemoryDriver):
    """One instance that cannot be ended until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = asyncio.Event()
        self.victim: SandboxId | None = None

    async def boot(self, plan: BootPlan) -> MemoryInstance:
        instance = await super().boot(plan)
        destroy = instance.destroy

        async def hang() -> None:
            if instance.sandbox_id == self.victim:
                await self.let_go.wait()
            await destroy()

        instance.destroy = hang  # type: ignore[method-assign]
        return instance


@pytest.mark.thorough
async def test_hung_sandbox_holds_up_neither_others_nor_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "DESTROY_WITHIN_S", 0.3)
    driver = Hanging()
    async with engine_over(tmp_path / "state", driver=driver) as engine:
        control = engine.backend.sandboxes
        hung, other = await control.create(SPEC), await control.create(SPEC)
        driver.victim = hung.id
        killing = asyncio.create_task(control.kill(hung.id, Signal.KILL))
        await eventually(lambda: engine.node.roster.get(hung.id).lock.locked())  # type: ignore[union-attr]
        assert len(await control.list(SandboxFilter())) == 2
        assert (await control.kill(other.id, Signal.KILL)).state is SandboxState.STOPPED
        with pytest.raises(DeadlineExceeded):
            await killing
        assert (await control.inspect(hung.id)).end_cause is EndCause.DRIVER_FAILED
        driver.let_go.set()
        await control.delete(hung.id, DeleteOptions())
        assert await engine.driver.live() == []


async def test_attach_asks_the_agent(engine: Engine) -> None:
    control = engine.backend.sandboxes
    info = await control.create(SPEC)
    assert (await control.attach(info.id, AttachOptions(require_running=True))).id == info.id
    await control.kill(info.id, Signal.KILL)
    assert (await control.attach(info.id, AttachOptions())).state is SandboxState.STOPPED
    with pytest.raises(WrongState):
        await control.attach(info.id, AttachOptions(require_running=True))


async def test_attach_waits_for_a_pause_that_has_cut_the_connection(engine: Engine) -> None:
    control = engine.backend.sandboxes
    info = await control.create(SPEC)
    engine.driver.faults.hold_ends()
    pausing = asyncio.gather(engine.backend.pauses.pause(info.id, PauseOptions(keep_memory=False)))
    await engine.driver.faults.end_waits.wait()
    needs = [AttachOptions(require_running=True), AttachOptions()]
    attaching = asyncio.gather(*(control.attach(info.id, each) for each in needs), return_exceptions=True)
    try:
        await asyncio.wait((attaching,), timeout=0.05)
        assert not attaching.done()
    finally:
        engine.driver.faults.release_ends()
    await pausing
    refused, seen = await attaching
    assert isinstance(refused, WrongState)
    assert isinstance(seen, SandboxInfo)
    assert (refused.state, seen.state) == ("paused", SandboxState.PAUSED)


async def test_lost_connection_is_dialled_again_once_for_all(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    resident = engine.node.roster.get(info.id)
    assert resident is not None
    assert resident.inside is not None
    await resident.inside.link.aclose()
    outputs = await asyncio.gather(*(engine.backend.processes.run(info.id, Command.shell("echo x")) for _ in range(5)))
    assert {output.stdout for output in outputs} == {b"x\n"}


async def test_ended_instance_cannot_be_reached(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    resident = engine.node.roster.get(info.id)
    assert resident is not None
    await engine.backend.sandboxes.kill(info.id, Signal.KILL)
    with pytest.raises(SandboxUnavailable, match="it has ended"):
        await engine.node.links.connect(resident)


async def test_a_policy_that_cannot_be_kept_is_refused_and_changes_nothing(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    policy = NetworkPolicy(rules=(HeaderRule(domain="example.com", headers={"X": "caf\udce9"}),))
    with pytest.raises(InvalidSpec, match="not Unicode"):
        await engine.backend.sandboxes.update_network(info.id, policy)
    with pytest.raises(InvalidSpec, match="not Unicode"):
        await engine.backend.sandboxes.create(replace(SPEC, network=policy))
    assert [one.network for one in await engine.backend.sandboxes.list(SandboxFilter())] == [info.network]


@pytest.mark.parametrize(
    ("fields", "capability"),
    [
        ({"volumes": (VolumeMount(name="data", path="/data"),)}, CapabilityName.RUNTIME_CREATE),
        ({"isolation": Isolation.GVISOR}, CapabilityName.RUNTIME_CREATE),
    ],
)
async def test_what_is_not_done_is_refused(
    engine: Engine, fields: dict[str, object], capability: CapabilityName
) -> None:
    with pytest.raises(UnsupportedCapability) as refused:
        await engine.backend.sandboxes.create(SandboxSpec.from_template(TEMPLATE, **fields))
    assert refused.value.capability is capability
    assert await engine.leftovers() == []


async def test_an_unknown_snapshot_is_no_source(engine: Engine) -> None:
    with pytest.raises(NotFound) as missing:
        await engine.backend.sandboxes.create(SandboxSpec(source=FromSnapshot(SnapshotId("s"))))
    assert missing.value.resource is ResourceKind.SNAPSHOT
    assert await engine.leftovers() == []


@pytest.mark.parametrize("grace_s", [-1.0, 1e9, float("nan")])
async def test_impossible_grace_is_refused(engine: Engine, grace_s: float) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    with pytest.raises(InvalidSpec, match="grace"):
        await engine.backend.sandboxes.stop(info.id, Graceful(grace_s))


async def test_sandbox_environment_lies_under_each_command(engine: Engine) -> None:
    spec = SandboxSpec.from_template(TEMPLATE, env={"A": "sandbox", "B": "sandbox"})
    info = await engine.backend.sandboxes.create(spec)
    command = replace(Command.shell('echo "$A $B"'), env={"B": "command"})
    assert (await engine.backend.processes.run(info.id, command)).stdout == b"sandbox command\n"


async def test_filters_and_order_of_the_list(engine: Engine) -> None:
    control = engine.backend.sandboxes
    infos = [
        await control.create(SandboxSpec.from_template(TEMPLATE, metadata={"n": str(n % 2)}, owner="ann"))
        for n in range(4)
    ]
    newest_first = [info.id for info in reversed(infos)]
    assert [info.id for info in await control.list(SandboxFilter(owner="ann"))] == newest_first
    assert len(await control.list(SandboxFilter(metadata={"n": "1"}))) == 2
    assert await control.list(SandboxFilter(owner="bob")) == []


async def test_an_end_is_recorded_whatever_bytes_it_tells_of(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    resident = engine.node.roster.get(info.id)
    assert resident is not None
    why = Why.ended(EndCause.DRIVER_FAILED, actor="engine", detail="no such file: caf\udce9")
    await endings.delete(engine.node, resident, why, force=True)
    kept = await engine.node.records.last(info.id)
    assert kept is not None
    assert kept.end_detail == "no such file: caf\\udce9"


async def test_one_that_cannot_be_ended_at_the_close_keeps_no_other_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = MemoryDriver()
    ended = endings.delete
    seen: list[SandboxId] = []

    async def confused(node: Node, resident: Resident, why: Why, *, force: bool) -> None:
        seen.append(resident.id)
        if len(seen) == 1:
            raise LookupError("nobody thought of this")
        await settle()
        await ended(node, resident, why, force=force)

    monkeypatch.setattr(endings, "delete", confused)
    async with engine_over(tmp_path / "state", driver=driver) as engine:
        for _ in range(5):
            await engine.backend.sandboxes.create(SPEC)
        with pytest.raises(LookupError):
            await engine.backend.aclose(kill_all=True)
    assert await driver.live() == seen[:1]
    async with engine_over(tmp_path / "state", driver=driver) as engine:
        ends = [(await engine.node.records.last(sandbox_id)) for sandbox_id in seen[1:5]]
        assert [end and end.end_cause for end in ends] == [EndCause.SERVER_SHUTDOWN] * 4
