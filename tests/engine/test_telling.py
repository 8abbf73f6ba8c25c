"""Events, logs, metrics, ports, capabilities: what the engine tells."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver, MemoryRootPreparer
from firkin.engine.backend import LocalBackend
from firkin.engine.events import QUEUE_LIMIT, EventBus
from firkin.law.backend import Preflight
from firkin.law.capabilities import CapabilityName
from firkin.law.errors import (
    AlreadyExists,
    BackendFailure,
    InvalidSpec,
    NotFound,
    UnsupportedCapability,
)
from firkin.law.events import EventFilter, FileChanged, LifecycleChanged, PortChanged, ProcessChanged
from firkin.law.files import FileEventKind, SandboxPath, WriteOptions
from firkin.law.ids import SandboxId
from firkin.law.logs import LogFilter, LogLevel, LogSource
from firkin.law.metrics import MetricFilter
from firkin.law.ports import DomainProxySpec, Port, PortExposure, PortProtocol
from firkin.law.processes import ById, Command, ProcessStatus
from firkin.law.sandboxes import DeleteOptions
from firkin.law.states import SandboxState
from firkin.testing.virtual_clock import VirtualClock
from tests.engine.conftest import POLICIES, SPEC, Engine, engine_over


async def test_log_stream_gives_new_entries_and_keeps_the_newest(tmp_path: Path) -> None:
    async with engine_over(tmp_path / "state") as engine:
        logs, told = engine.backend.logs, engine.node.logs
        told.write(SandboxId("a"), LogSource.BOOT, "before")
        stream = await logs.stream(LogFilter(sandbox_id=SandboxId("a"), level=LogLevel.INFO, limit=2))
        told.write(SandboxId("b"), LogSource.BOOT, "another's")
        told.write(SandboxId("a"), LogSource.BOOT, "quiet", LogLevel.DEBUG)
        for word in ("one", "two", "three"):
            told.write(SandboxId("a"), LogSource.BOOT, word)
        assert [(await anext(stream)).message for _ in range(2)] == ["two", "three"]
        await stream.aclose()
        with pytest.raises(InvalidSpec, match="limit"):
            await logs.stream(LogFilter(limit=0))
        left = await logs.stream(LogFilter())
    async with asyncio.timeout(5):
        _ = [entry async for entry in left]  # it ends with the engine


async def test_changes_of_files_are_told(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    events = await engine.backend.events.subscribe(EventFilter(sandbox_id=info.id))
    files, a, b = engine.backend.filesystems, SandboxPath("/tmp/a"), SandboxPath("/tmp/b")
    await files.write(info.id, a, b"x", WriteOptions())
    await files.rename(info.id, a, b)
    await files.remove(info.id, b)
    await files.mkdir(info.id, a)
    told = [(await anext(events)).kind for _ in range(5)]
    kinds = FileEventKind
    wanted = [(a, kinds.WRITE), (a, kinds.RENAME), (b, kinds.CREATE), (b, kinds.REMOVE), (a, kinds.CREATE)]
    assert told == [FileChanged(info.id, path, kind) for path, kind in wanted]


async def test_a_domain_is_refused(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    with pytest.raises(UnsupportedCapability) as refused:
        await engine.backend.ports.domain_proxy(info.id, DomainProxySpec("a.example"))
    assert refused.value.capability is CapabilityName.PORTS_DOMAIN_PROXY


async def test_slow_listener_loses_the_oldest_and_knows_it() -> None:
    bus = EventBus(VirtualClock())
    slow = await bus.subscribe(EventFilter())
    other = await bus.subscribe(EventFilter(sandbox_id=SandboxId("b")))
    for number in range(QUEUE_LIMIT + 10):
        bus.publish(PortChanged(SandboxId("a"), Port(number + 1)))
    bus.publish(PortChanged(SandboxId("b"), Port(9)))
    assert slow.lost == 11
    assert (await anext(slow)).kind == PortChanged(SandboxId("a"), Port(12))
    assert (await anext(other)).kind == PortChanged(SandboxId("b"), Port(9))
    bus.close()
    with pytest.raises(StopAsyncIteration):
        await anext(other)


async def test_closing_wakes_a_waiting_listener() -> None:
    bus = EventBus(VirtualClock())
    stream = await bus.subscribe(EventFilter())
    waiting = asyncio.create_task(anext(stream, None))
    await asyncio.sleep(0)
    await stream.aclose()
    assert await waiting is None


async def test_processes_are_told_about(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    events = await engine.backend.events.subscribe(EventFilter(sandbox_id=info.id))
    process = await engine.backend.processes.start(info.id, Command.shell("exit 3"))
    await engine.backend.processes.wait(info.id, ById(process.id))
    async for _ in await engine.backend.processes.stream(info.id, Command.shell("true")):
        pass
    kinds = [(await anext(events)).kind for _ in range(4)]
    statuses = [kind.status for kind in kinds if isinstance(kind, ProcessChanged)]
    assert statuses == [ProcessStatus.RUNNING, ProcessStatus.EXITED] * 2


async def test_logs_are_filtered_and_survive_a_restart_through_the_journal(tmp_path: Path) -> None:
    driver = MemoryDriver()
    async with engine_over(tmp_path / "state", driver=driver, kill_all=False) as first:
        info = await first.backend.sandboxes.create(SPEC)
        await first.backend.processes.start(info.id, Command.shell("true"))
        everything = await first.backend.logs.list(LogFilter(sandbox_id=info.id))
        assert [entry.source for entry in everything] == ["runtime", "runtime", "boot", "process"]
        loud = await first.backend.logs.list(LogFilter(sandbox_id=info.id, level=LogLevel.INFO, limit=1))
        assert [entry.source for entry in loud] == [LogSource.BOOT]
    async with engine_over(tmp_path / "state", driver=driver) as second:
        await second.backend.sandboxes.delete(info.id, DeleteOptions(force=True))
        told = [entry.message for entry in await second.backend.logs.list(LogFilter(sandbox_id=info.id))]
        assert told[:2] == ["creating: create requested", "running: its agent answered"]
        assert told[-1].startswith("deleted: ")
        assert len(told) == 4


async def test_metrics_count_what_is_there(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    found = {metric.name: metric.value for metric in await engine.backend.metrics.snapshot(MetricFilter())}
    assert found["sandboxes.running"] == found["creates.succeeded"] == found["promised.sandboxes"] == 1
    assert [metric.name for metric in await engine.backend.metrics.snapshot(MetricFilter(prefix="templates."))] == [
        "templates.ready"
    ]
    usage = await engine.backend.metrics.usage(info.id)
    assert usage.memory_total_bytes == info.resources.memory_bytes
    assert 0 < usage.memory_used_bytes <= usage.memory_total_bytes
    assert usage.cpu_used_pct >= 0


async def test_exposed_port_ends_with_its_sandbox(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    ports = engine.backend.ports
    binding = await ports.expose(info.id, Port(8080), PortExposure())
    assert binding.host is not None
    assert binding in await ports.list(info.id)
    with pytest.raises(AlreadyExists):
        await ports.expose(info.id, Port(8080), PortExposure())
    reader, writer = await asyncio.open_connection("127.0.0.1", binding.host)
    assert await reader.read() == b""  # nothing listens inside
    writer.close()
    await ports.unexpose(info.id, Port(8080))
    with pytest.raises(NotFound):
        await ports.unexpose(info.id, Port(8080))
    again = await ports.expose(info.id, Port(8080), PortExposure())
    await engine.backend.sandboxes.delete(info.id, DeleteOptions(force=True))
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", again.host)


async def test_only_tcp_is_exposed(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    with pytest.raises(UnsupportedCapability):
        await engine.backend.ports.expose(info.id, Port(53), PortExposure(protocol=PortProtocol.UDP))


async def test_report_and_controls_agree(engine: Engine) -> None:
    report = await engine.backend.capabilities()
    assert engine.backend.warm_pool is not None
    assert report.supports(CapabilityName.WARM_POOL_PREWARM)
    assert engine.backend.pauses is not None
    assert report.supports(CapabilityName.PAUSE_CAPTURE)
    assert report.supports(CapabilityName.SNAPSHOT_EXPORT)
    assert report.supports(CapabilityName.RUNTIME_CREATE)
    assert all(str(reason) for _, reason in report if reason is not None)


async def test_state_changes_are_told_in_order(engine: Engine) -> None:
    events = await engine.backend.events.subscribe(EventFilter())
    info = await engine.backend.sandboxes.create(SPEC)
    await engine.backend.sandboxes.delete(info.id, DeleteOptions(force=True))
    kinds = [(await anext(events)).kind for _ in range(4)]
    assert [kind.state for kind in kinds if isinstance(kind, LifecycleChanged)] == [
        SandboxState.CREATING,
        SandboxState.RUNNING,
        SandboxState.STOPPED,
        SandboxState.DELETED,
    ]


class Unready(MemoryDriver):
    async def preflight(self) -> Preflight:
        return Preflight(ready=False, reasons=("no cgroups; mount them", "no loop devices; load loop"))


async def test_host_that_is_not_ready_is_refused_with_every_reason(tmp_path: Path) -> None:
    backend = LocalBackend(driver=Unready(), preparer=MemoryRootPreparer(), state_dir=tmp_path / "state")
    with pytest.raises(BackendFailure, match=r"no cgroups; mount them; no loop devices; load loop"):
        await backend.start(POLICIES)
    with pytest.raises(BackendFailure, match="not running"):
        _ = backend.sandboxes
    await backend.aclose()
