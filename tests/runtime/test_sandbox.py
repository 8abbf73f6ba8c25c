"""The live handle and the clients."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver, MemoryRootPreparer
from firkin.engine.backend import LocalBackend
from firkin.law.capabilities import Capabilities, CapabilityName, Permanent
from firkin.law.errors import AlreadyExists, NotFound, UnsupportedCapability, WrongState
from firkin.law.events import EventFilter, LifecycleChanged
from firkin.law.ids import ProcessTag
from firkin.law.processes import Command, Ended, Exited, PtySize, Signal, Signaled, Started, Stdout
from firkin.law.sandboxes import SandboxFilter, SandboxSpec, Timeout
from firkin.law.states import SandboxState
from firkin.law.warm_pool import WarmPoolSpec
from firkin.runtime.runtime import Runtime
from firkin.runtime.sandbox import Sandbox


async def test_block_leaves_no_sandbox_and_a_plain_handle_does(runtime: Runtime) -> None:
    async with await runtime.sandboxes.create("plain") as inside:
        assert (await inside.exec("echo hi")).stdout == b"hi\n"
    plain = await runtime.sandboxes.create(SandboxSpec.from_template("plain", metadata={"a": "b"}))
    assert [info.id for info in await runtime.sandboxes.list()] == [plain.id]
    assert [info.id for info in await runtime.sandboxes.list(SandboxFilter(metadata={"a": "c"}))] == []
    with pytest.raises(NotFound):
        await inside.refresh()


async def test_block_whose_sandbox_is_gone_already_ends_quietly(runtime: Runtime) -> None:
    async with await runtime.sandboxes.create("plain") as sandbox:
        await sandbox.delete(force=True)


async def test_lifecycle_through_the_handle(sandbox: Sandbox, runtime: Runtime) -> None:
    assert (await sandbox.ping()).state is SandboxState.RUNNING
    assert (await sandbox.update_deadline(Timeout(60))).deadline_at is not None
    again = await runtime.sandboxes.attach(sandbox.id, require_running=True)
    assert again.info() == sandbox.info()
    assert (await sandbox.stop()).state is SandboxState.STOPPED
    assert (await sandbox.kill()).state is SandboxState.STOPPED
    with pytest.raises(WrongState):
        await sandbox.exec("true")


async def test_detached_process_is_waited_for_and_read_later(sandbox: Sandbox) -> None:
    process = await sandbox.process.start(replace(Command.shell("read x; echo got $x; exit 4"), keep_stdin=True))
    assert [info.id for info in await sandbox.process.list()] == [process.id]
    await process.send_input("word\n")
    events = [event async for event in process]
    assert isinstance(events[0], Started)
    assert events[-2:] == [Stdout(b"got word\n"), Ended(Exited(4))]
    assert process.ended
    assert (await process.wait()).status == Exited(4)


async def test_streaming_process_collects_on_wait(sandbox: Sandbox) -> None:
    async with await sandbox.process.stream("echo out; echo err >&2; exit 2") as process:
        output = await process.wait()
    assert (output.stdout, output.stderr, output.status) == (b"out\n", b"err\n", Exited(2))
    assert await process.wait() is output


async def test_process_is_found_by_tag_and_signalled(sandbox: Sandbox) -> None:
    command = replace(Command.shell("sleep 100"), tag=ProcessTag("sleeper"))
    process = await sandbox.process.start(command)
    async with await sandbox.process.connect("sleeper") as same:
        assert same.id == process.id
        await sandbox.process.signal(int(process.id), Signal.KILL)
        assert (await same.wait()).status == Signaled(9)
    assert (await process.wait()).status == Signaled(9)


async def test_stdin_is_closed_and_terminals_are_resized(sandbox: Sandbox) -> None:
    process = await sandbox.process.stream(replace(Command.argv("cat"), keep_stdin=True))
    await process.send_input(b"abc")
    await process.close_stdin()
    assert (await process.wait()).stdout == b"abc"
    terminal = await sandbox.process.stream(replace(Command.argv("/bin/sh"), pty=PtySize()))
    await terminal.resize(PtySize(10, 20))
    await terminal.kill()
    assert (await terminal.wait()).status == Signaled(9)


async def test_files_through_the_handle(sandbox: Sandbox, tmp_path: Path) -> None:
    fs = sandbox.fs
    await fs.write("/work/a.txt", "one", user="user")
    await fs.append("/work/a.txt", b" two")
    assert await fs.read_text("/work/a.txt") == "one two"
    assert await fs.read("/work/a.txt", offset=4, length=3) == b"two"
    assert (await fs.stat("/work/a.txt")).size_bytes == 7
    await fs.mkdir("/work/deep/down", parents=True)
    await fs.rename("/work/a.txt", "/work/deep/b.txt")
    assert [entry.name for entry in await fs.list("/work", depth=2)] == ["deep", "b.txt", "down"]
    await fs.copy_out("/work/deep", tmp_path / "out")
    assert (tmp_path / "out" / "b.txt").read_text() == "one two"
    with pytest.raises(AlreadyExists):
        await fs.copy_out("/work/deep/b.txt", tmp_path / "out" / "b.txt")
    await fs.copy_in(tmp_path / "out", "/work/back")
    assert await fs.exists("/work/back/b.txt")
    await fs.chown("/work/back/b.txt", "user")
    await fs.remove("/work", recursive=True)
    assert not await fs.exists("/work")


async def test_what_is_made_belongs_to_the_default_user_unless_another_is_named(
    sandbox: Sandbox, runtime: Runtime, tmp_path: Path
) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "file").write_text("x")
    for fs in (sandbox.fs, runtime.files.of(sandbox.id)):
        made = [
            await fs.write("/work/new/a", "a"),
            await fs.stat("/work/new"),
            await fs.append("/work/b", "b"),
            await fs.mkdir("/work/made"),
            await fs.copy_in(tmp_path / "given", "/work/given"),
            await fs.stat("/work/given/file"),
        ]
        assert {entry.owner for entry in made} == {sandbox.info().default_user}
        assert (await fs.write("/work/c", "c", user="root")).owner == "root"
        await fs.remove("/work", recursive=True)


async def test_watch_tells_of_changes(sandbox: Sandbox) -> None:
    await sandbox.fs.mkdir("/watched")
    stream = await sandbox.fs.watch("/watched")
    await sandbox.fs.write("/watched/new", b"")
    async with asyncio.timeout(5):
        assert (await anext(stream)).name == "new"
    await stream.aclose()


async def test_ports_logs_metrics_and_events_are_reachable(sandbox: Sandbox, runtime: Runtime) -> None:
    assert await sandbox.ports.list() == []
    binding = await sandbox.ports.expose(8000)
    assert binding.host is not None
    await sandbox.ports.unexpose(8000)
    assert (await sandbox.metrics()).cpu_count == sandbox.info().resources.vcpus
    assert (await runtime.metrics.usage(sandbox.id)).sandbox_id == sandbox.id
    assert await runtime.metrics.snapshot()
    assert await sandbox.logs()
    assert await runtime.logs.list()
    events = await runtime.events.subscribe(EventFilter(sandbox_id=sandbox.id))
    await sandbox.kill()
    assert (await anext(events)).kind == LifecycleChanged(sandbox.id, SandboxState.STOPPED, "requested: killed")
    await events.aclose()


class WithoutPools(LocalBackend):
    """As one that keeps nothing ready."""

    async def capabilities(self) -> Capabilities:
        reason = Permanent("nothing is kept ready here")
        names = (CapabilityName.WARM_POOL_PREWARM, CapabilityName.WARM_POOL_CHECKOUT)
        return (await super().capabilities()).with_unsupported(reason, *names)

    @property
    def warm_pool(self) -> None:  # type: ignore[override]  # a backend may have none
        return None


async def test_missing_controls_refuse_by_their_own_name(tmp_path: Path) -> None:
    runtime = Runtime(WithoutPools(driver=MemoryDriver(), preparer=MemoryRootPreparer(), state_dir=tmp_path / "state"))
    asked = {
        CapabilityName.WARM_POOL_PREWARM: runtime.warm_pool.prewarm("plain", WarmPoolSpec.of_depth(1)),
        CapabilityName.WARM_POOL_CHECKOUT: runtime.warm_pool.checkout("plain"),
    }
    for capability, asking in asked.items():
        with pytest.raises(UnsupportedCapability) as refused:
            await asking
        assert refused.value.capability is capability


async def test_runtime_tells_what_it_stands_on(runtime: Runtime) -> None:
    assert (await runtime.info()).driver == "memory"
    assert (await runtime.preflight()).ready
    assert (await runtime.capabilities()).supports(CapabilityName.RUNTIME_CREATE)
    assert [info.id for info in await runtime.templates.list()] == ["plain"]
    with pytest.raises(NotFound):
        await runtime.templates.get("none")
