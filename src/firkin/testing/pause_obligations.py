"""Obligations of a backend: what a pause keeps, what a paused sandbox refuses, and who wins a race."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from firkin.law.backend import FilesystemControl, PauseControl, ProcessControl, SandboxBackend
from firkin.law.capabilities import Capabilities, CapabilityName
from firkin.law.errors import CapacityRejected, FirkinError, InvalidSpec, NotFound, WrongState
from firkin.law.events import EventFilter, LifecycleChanged
from firkin.law.files import SandboxPath, WriteOptions
from firkin.law.ids import SandboxId
from firkin.law.policies import Capacity, DeadlinePolicy, Policies
from firkin.law.processes import ById, Command, Signal
from firkin.law.sandboxes import (
    AttachOptions,
    DeleteOptions,
    Lifecycle,
    OnTimeout,
    PauseMode,
    SandboxFilter,
    SandboxInfo,
    Timeout,
)
from firkin.law.snapshots import PauseOptions, ResumeOptions
from firkin.law.states import SandboxState
from firkin.law.templates import TemplateInfo
from firkin.testing.backend_suite import (
    FREE,
    PATIENCE_S,
    BackendSuite,
    MakeBackend,
    eventually,
    linear,
    said,
)

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
_S = SandboxState
_FILES_ALONE = PauseOptions(keep_memory=False)
BOTH = pytest.mark.parametrize("keep_memory", [True, False], ids=["memory", "files"])


class PauseSuite(BackendSuite):
    @pytest.fixture
    def pauses(self, backend: SandboxBackend, capabilities: Capabilities) -> PauseControl:
        return self.pauses_of(backend, capabilities)

    def pauses_of(self, backend: SandboxBackend, capabilities: Capabilities) -> PauseControl:
        for name in (CapabilityName.PAUSE_CAPTURE, CapabilityName.PAUSE_RESUME):
            if backend.pauses is None or not capabilities.supports(name):
                pytest.skip(f"{name.value}: {capabilities.refusal(name)}")
        assert backend.pauses is not None
        return backend.pauses

    async def state(self, backend: SandboxBackend, sandbox_id: SandboxId) -> SandboxState:
        return (await backend.sandboxes.inspect(sandbox_id)).state


class PauseObligations(PauseSuite):
    async def test_a_pause_keeps_processes_files_and_the_boot(
        self, backend: SandboxBackend, pauses: PauseControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        boot_id = await said(processes, sandbox.id, f"echo kept > /tmp/kept; {BOOT_ID}")
        started = await processes.start(sandbox.id, Command.argv("sleep", "1000"))
        assert (await pauses.pause(sandbox.id, PauseOptions())).sandbox_id == sandbox.id
        paused = await backend.sandboxes.inspect(sandbox.id)
        assert (paused.state, paused.pause_mode, paused.unresponsive_at_pause) == (_S.PAUSED, PauseMode.FULL, False)
        assert paused.paused_at is not None
        resumed = await pauses.resume(sandbox.id)
        assert (resumed.state, resumed.paused_at, resumed.pause_mode) == (_S.RUNNING, None, None)
        assert await said(processes, sandbox.id, f"cat /tmp/kept; {BOOT_ID}") == f"kept\n{boot_id}"
        assert started.id in [process.id for process in await processes.list(sandbox.id)]

    async def test_a_pause_without_memory_keeps_the_files_alone(
        self, backend: SandboxBackend, pauses: PauseControl, processes: ProcessControl, template: TemplateInfo
    ) -> None:
        spec = self.spec(template, env={"A": "b"}, metadata={"k": "v"}, owner="ann", labels={"note": "x"})
        made = await backend.sandboxes.create(spec)
        boot_id = await said(processes, made.id, f"echo kept > /tmp/kept; {BOOT_ID}")
        await processes.start(made.id, Command.argv("sleep", "1000"))
        await pauses.pause(made.id, _FILES_ALONE)
        assert (await backend.sandboxes.inspect(made.id)).pause_mode is PauseMode.FILESYSTEM
        resumed = await pauses.resume(made.id)
        assert (resumed.id, resumed.env, resumed.metadata) == (made.id, made.env, made.metadata)
        assert (resumed.owner, resumed.labels, resumed.resources) == (made.owner, made.labels, made.resources)
        assert resumed.created_at == made.created_at
        assert list(await processes.list(made.id)) == []
        assert await said(processes, made.id, "cat /tmp/kept; echo $A") == "kept\nb\n"
        assert await said(processes, made.id, BOOT_ID) != boot_id

    async def test_a_memory_that_is_not_wanted_back_is_dropped(
        self, pauses: PauseControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        await said(processes, sandbox.id, "echo kept > /tmp/kept")
        await processes.start(sandbox.id, Command.argv("sleep", "1000"))
        await pauses.pause(sandbox.id, PauseOptions())
        await pauses.resume(sandbox.id, ResumeOptions(keep_memory=False))
        assert list(await processes.list(sandbox.id)) == []
        assert await said(processes, sandbox.id, "cat /tmp/kept") == "kept\n"

    async def test_pauses_of_both_kinds_follow_each_other(
        self, pauses: PauseControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        for number, keep_memory in enumerate((True, False, False, True, True, False)):
            await said(processes, sandbox.id, f"echo {number} >> /tmp/numbers")
            await pauses.pause(sandbox.id, PauseOptions(keep_memory=keep_memory, require_healthy=True))
            await pauses.resume(sandbox.id)
        assert await said(processes, sandbox.id, "cat /tmp/numbers") == "0\n1\n2\n3\n4\n5\n"

    @BOTH
    async def test_what_is_paused_is_not_paused_and_what_runs_is_not_resumed(
        self, pauses: PauseControl, sandbox: SandboxInfo, keep_memory: bool
    ) -> None:
        with pytest.raises(WrongState) as caught:
            await pauses.resume(sandbox.id)
        assert caught.value.state == _S.RUNNING.value
        await pauses.pause(sandbox.id, PauseOptions(keep_memory=keep_memory))
        for again in (True, False):
            with pytest.raises(WrongState) as caught:
                await pauses.pause(sandbox.id, PauseOptions(keep_memory=again))
            assert caught.value.state == _S.PAUSED.value
        await pauses.resume(sandbox.id)
        with pytest.raises(WrongState):
            await pauses.resume(sandbox.id)

    async def test_what_has_ended_or_never_was_is_neither_paused_nor_resumed(
        self, backend: SandboxBackend, pauses: PauseControl, sandbox: SandboxInfo
    ) -> None:
        await backend.sandboxes.kill(sandbox.id, Signal.KILL)
        for attempt in (pauses.pause(sandbox.id, PauseOptions()), pauses.resume(sandbox.id)):
            with pytest.raises(WrongState):
                await attempt
        await backend.sandboxes.delete(sandbox.id, DeleteOptions())
        for unknown in (sandbox.id, SandboxId("neverexisted")):
            for attempt in (pauses.pause(unknown, PauseOptions()), pauses.resume(unknown)):
                with pytest.raises(NotFound):
                    await attempt

    @BOTH
    async def test_a_paused_sandbox_takes_no_requests(
        self,
        backend: SandboxBackend,
        pauses: PauseControl,
        processes: ProcessControl,
        files: FilesystemControl,
        sandbox: SandboxInfo,
        keep_memory: bool,
    ) -> None:
        await pauses.pause(sandbox.id, PauseOptions(keep_memory=keep_memory))
        attempts = [
            processes.run(sandbox.id, Command.argv("true")),
            processes.list(sandbox.id),
            files.stat(sandbox.id, SandboxPath("/tmp")),
            files.write(sandbox.id, SandboxPath("/tmp/x"), b"x", WriteOptions()),
            backend.sandboxes.attach(sandbox.id, AttachOptions(require_running=True)),
        ]
        for attempt in attempts:
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(WrongState) as caught:
                    await attempt
            assert caught.value.state.startswith(_S.PAUSED.value)

    @BOTH
    async def test_a_paused_sandbox_is_seen_listed_and_attached_to(
        self, backend: SandboxBackend, pauses: PauseControl, sandbox: SandboxInfo, keep_memory: bool
    ) -> None:
        await pauses.pause(sandbox.id, PauseOptions(keep_memory=keep_memory))
        info = await backend.sandboxes.inspect(sandbox.id)
        assert await backend.sandboxes.attach(sandbox.id, AttachOptions()) == info
        paused = SandboxFilter(states=frozenset({_S.PAUSED}))
        assert (
            list(await backend.sandboxes.list(paused)) == list(await backend.sandboxes.list(SandboxFilter())) == [info]
        )

    @BOTH
    async def test_a_paused_sandbox_can_be_killed_and_deleted(
        self, backend: SandboxBackend, pauses: PauseControl, template: TemplateInfo, keep_memory: bool
    ) -> None:
        one, two = [await backend.sandboxes.create(self.spec(template)) for _ in range(2)]
        for info in (one, two):
            await pauses.pause(info.id, PauseOptions(keep_memory=keep_memory))
        with pytest.raises(WrongState):
            await backend.sandboxes.delete(one.id, DeleteOptions())
        assert (await backend.sandboxes.kill(one.id, Signal.KILL)).state is _S.STOPPED
        await backend.sandboxes.delete(one.id, DeleteOptions())
        await backend.sandboxes.delete(two.id, DeleteOptions(force=True))
        assert await self.leftovers(backend) == []
        assert list(await backend.sandboxes.list(SandboxFilter())) == []

    async def test_a_command_under_way_survives_and_its_reader_is_not_left_waiting(
        self, backend: SandboxBackend, pauses: PauseControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        started = await processes.start(sandbox.id, Command.argv("sleep", "1000"))
        waiting = asyncio.gather(processes.wait(sandbox.id, ById(started.id)), return_exceptions=True)
        await asyncio.sleep(0)
        await pauses.pause(sandbox.id, PauseOptions())
        async with asyncio.timeout(PATIENCE_S):
            [answer] = await waiting
        assert isinstance(answer, FirkinError)
        await pauses.resume(sandbox.id)
        assert started.id in [process.id for process in await processes.list(sandbox.id)]

    @BOTH
    async def test_a_pause_during_a_write_ends_the_write_and_nothing_else(
        self,
        pauses: PauseControl,
        processes: ProcessControl,
        files: FilesystemControl,
        sandbox: SandboxInfo,
        keep_memory: bool,
    ) -> None:
        begun, never = asyncio.Event(), asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            yield b"first"
            begun.set()
            await never.wait()

        writing = asyncio.gather(
            files.write(sandbox.id, SandboxPath("/tmp/upload"), endless(), WriteOptions()), return_exceptions=True
        )
        async with asyncio.timeout(PATIENCE_S):
            await begun.wait()
            await pauses.pause(sandbox.id, PauseOptions(keep_memory=keep_memory))
            never.set()
            [answer] = await writing
        assert isinstance(answer, FirkinError)
        await pauses.resume(sandbox.id)
        assert await said(processes, sandbox.id, "echo well") == "well\n"

    async def test_events_and_history_tell_who_paused_and_resumed(
        self, backend: SandboxBackend, pauses: PauseControl, sandbox: SandboxInfo
    ) -> None:
        stream = None if backend.events is None else await backend.events.subscribe(EventFilter(sandbox_id=sandbox.id))
        await pauses.pause(sandbox.id, PauseOptions(actor="key ann"))
        await pauses.resume(sandbox.id, ResumeOptions(actor="key bob"))
        assert await linear(backend, sandbox.id) == [_S.CREATING, _S.RUNNING, _S.PAUSED, _S.RUNNING]
        changes = (await backend.sandboxes.history(sandbox.id)).changes
        assert [change.actor for change in changes[-2:]] == ["key ann", "key bob"]
        if stream is not None:
            told: list[SandboxState] = []
            async with asyncio.timeout(PATIENCE_S):
                while len(told) < 2:
                    kind = (await anext(stream)).kind
                    told += [kind.state] if isinstance(kind, LifecycleChanged) else []
            await stream.aclose()
            assert told == [_S.PAUSED, _S.RUNNING]


class PauseDeadlineObligations(PauseSuite):
    @BOTH
    async def test_a_deadline_does_not_fire_while_paused(
        self,
        backend: SandboxBackend,
        pauses: PauseControl,
        processes: ProcessControl,
        template: TemplateInfo,
        keep_memory: bool,
    ) -> None:
        info = await backend.sandboxes.create(self.spec(template, deadline=Timeout(0.6)))
        await pauses.pause(info.id, PauseOptions(keep_memory=keep_memory))
        await asyncio.sleep(0.8)
        assert await self.state(backend, info.id) is _S.PAUSED
        resumed = await pauses.resume(info.id, ResumeOptions(deadline=Timeout(1000)))
        assert resumed.deadline_at is not None
        assert 990 < (resumed.deadline_at - datetime.now(UTC)).total_seconds() <= 1000
        assert await said(processes, info.id, "echo well") == "well\n"

    async def test_a_resumed_sandbox_has_the_default_deadline_unless_told(
        self, pauses: PauseControl, sandbox: SandboxInfo
    ) -> None:
        default_s = FREE.deadlines.default_timeout_s
        assert default_s is not None
        await pauses.pause(sandbox.id, PauseOptions())
        resumed = await pauses.resume(sandbox.id)
        assert resumed.deadline_at is not None
        assert default_s - 10 < (resumed.deadline_at - datetime.now(UTC)).total_seconds() <= default_s

    @BOTH
    async def test_a_deadline_may_pause_instead(
        self,
        backend: SandboxBackend,
        pauses: PauseControl,
        processes: ProcessControl,
        template: TemplateInfo,
        keep_memory: bool,
    ) -> None:
        lifecycle = Lifecycle(on_timeout=OnTimeout.PAUSE, keep_memory=keep_memory)
        info = await backend.sandboxes.create(self.spec(template, lifecycle=lifecycle, deadline=Timeout(1000)))
        await said(processes, info.id, "echo kept > /tmp/kept")
        await backend.sandboxes.update_deadline(info.id, Timeout(0))
        await self._pauses_by_itself(backend, info.id)
        wanted = PauseMode.FULL if keep_memory else PauseMode.FILESYSTEM
        assert (await backend.sandboxes.inspect(info.id)).pause_mode is wanted
        assert (await backend.sandboxes.history(info.id)).changes[-1].actor == "deadline"
        await pauses.resume(info.id, ResumeOptions(deadline=Timeout(1000)))
        assert await said(processes, info.id, "cat /tmp/kept") == "kept\n"
        await backend.sandboxes.update_deadline(info.id, Timeout(0))
        await self._pauses_by_itself(backend, info.id)

    async def _pauses_by_itself(self, backend: SandboxBackend, sandbox_id: SandboxId) -> None:
        async def paused() -> bool:
            return await self.state(backend, sandbox_id) is _S.PAUSED

        await eventually(paused)

    async def test_a_wish_that_is_refused_leaves_it_paused(self, make_backend: MakeBackend) -> None:
        backend = await make_backend(Policies(capacity=FREE.capacity, deadlines=DeadlinePolicy(max_timeout_s=500.0)))
        try:
            pauses = self.pauses_of(backend, await backend.capabilities())
            template = await backend.templates.prepare(self.template_spec)
            info = await backend.sandboxes.create(self.spec(template, deadline=Timeout(100)))
            await pauses.pause(info.id, PauseOptions())
            with pytest.raises(InvalidSpec):
                await pauses.resume(info.id, ResumeOptions(deadline=Timeout(501)))
            assert await self.state(backend, info.id) is _S.PAUSED
            await pauses.resume(info.id, ResumeOptions(deadline=Timeout(499)))
        finally:
            await backend.aclose(kill_all=True)

    @BOTH
    async def test_a_resume_without_room_is_rejected_and_leaves_it_paused(
        self, make_backend: MakeBackend, keep_memory: bool
    ) -> None:
        backend = await make_backend(
            Policies(capacity=Capacity(max_sandboxes=1, memory_floor_bytes=0, disk_floor_bytes=0))
        )
        try:
            pauses = self.pauses_of(backend, await backend.capabilities())
            template = await backend.templates.prepare(self.template_spec)
            info = await backend.sandboxes.create(self.spec(template))
            await pauses.pause(info.id, PauseOptions(keep_memory=keep_memory))
            other = await backend.sandboxes.create(self.spec(template))
            with pytest.raises(CapacityRejected):
                await pauses.resume(info.id)
            assert await self.state(backend, info.id) is _S.PAUSED
            await backend.sandboxes.delete(other.id, DeleteOptions(force=True))
            await pauses.resume(info.id)
            with pytest.raises(CapacityRejected):
                await backend.sandboxes.create(self.spec(template))
        finally:
            await backend.aclose(kill_all=True)
