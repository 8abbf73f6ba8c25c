"""Obligations of a backend: forks are copies of what runs, each under an identity of its own."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from firkin.law.backend import ProcessControl, SandboxBackend, SnapshotControl
from firkin.law.errors import (
    CapacityRejected,
    InvalidSpec,
    NotFound,
    WrongState,
)
from firkin.law.ids import SandboxId
from firkin.law.policies import Capacity, Policies
from firkin.law.processes import Command, Signal
from firkin.law.sandboxes import DeleteOptions, Lifecycle, OnTimeout, SandboxFilter, SandboxInfo, Timeout
from firkin.law.snapshots import (
    ForkOptions,
    PauseOptions,
    SnapshotKind,
)
from firkin.law.states import SandboxState
from firkin.law.templates import TemplateInfo
from firkin.testing.backend_suite import MakeBackend, failures, outcomes, said
from firkin.testing.snapshot_obligations import BOOT_ID, SnapshotSuite


class ForkObligations(SnapshotSuite):
    async def test_forks_have_the_files_and_the_wishes_of_the_original(
        self, backend: SandboxBackend, snapshots: SnapshotControl, processes: ProcessControl, template: TemplateInfo
    ) -> None:
        spec = self.spec(template, env={"A": "b"}, metadata={"k": "v"}, owner="ann", labels={"note": "x"})
        if backend.pauses is not None:
            spec = replace(spec, lifecycle=Lifecycle(on_timeout=OnTimeout.PAUSE, auto_resume=True))
        original = await backend.sandboxes.create(spec)
        await said(processes, original.id, "echo kept > /tmp/kept")
        forks = await snapshots.fork(original.id, ForkOptions(count=3, deadline=Timeout(888)))
        made = [fork for fork in forks if isinstance(fork, SandboxInfo)]
        assert len(made) == len(forks) == 3
        for fork in made:
            assert (fork.state, fork.env, fork.metadata) == (SandboxState.RUNNING, original.env, original.metadata)
            assert (fork.owner, fork.labels, fork.lifecycle) == (original.owner, original.labels, original.lifecycle)
            assert (fork.template_id, fork.resources) == (original.template_id, original.resources)
            assert fork.deadline_at is not None
            assert 870 < (fork.deadline_at - datetime.now(UTC)).total_seconds() <= 888
            assert await said(processes, fork.id, "cat /tmp/kept; echo $A") == "kept\nb\n"
        assert len({original.id, *(fork.id for fork in made)}) == 4
        listed = {info.id for info in await backend.sandboxes.list(SandboxFilter())}
        assert listed == {original.id, *(fork.id for fork in made)}
        assert await self.ids(snapshots) == set()

    async def test_the_original_of_a_fork_goes_on(
        self, snapshots: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        boot_id = await said(processes, sandbox.id, BOOT_ID)
        started = await processes.start(sandbox.id, Command.argv("sleep", "1000"))
        [fork] = await snapshots.fork(sandbox.id, ForkOptions())
        assert isinstance(fork, SandboxInfo)
        assert len(await processes.list(fork.id)) == (self.captures is SnapshotKind.CONTINUATION)
        assert started.id in [process.id for process in await processes.list(sandbox.id)]
        assert await said(processes, sandbox.id, BOOT_ID) == boot_id

    async def test_forks_are_apart_and_of_fresh_identity(
        self, backend: SandboxBackend, snapshots: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        await said(processes, sandbox.id, "echo same > /tmp/file")
        one, two = await snapshots.fork(sandbox.id, ForkOptions(count=2, labels={"fork": "yes"}))
        assert isinstance(one, SandboxInfo)
        assert isinstance(two, SandboxInfo)
        assert one.labels == two.labels == {"fork": "yes"}
        await said(processes, one.id, "echo other > /tmp/file")
        assert await said(processes, two.id, "cat /tmp/file") == "same\n"
        for text in ("hostname", "cat /etc/machine-id", BOOT_ID):
            assert len({await said(processes, info.id, text) for info in (sandbox, one, two)}) == 3, text
        await backend.sandboxes.delete(sandbox.id, DeleteOptions(force=True))
        assert await said(processes, two.id, "cat /tmp/file") == "same\n"

    async def test_what_does_not_run_is_not_forked(
        self, backend: SandboxBackend, snapshots: SnapshotControl, template: TemplateInfo
    ) -> None:
        stopped = await backend.sandboxes.create(self.spec(template))
        await backend.sandboxes.kill(stopped.id, Signal.KILL)
        chosen = [stopped]
        if backend.pauses is not None:
            for keep_memory in (True, False):
                chosen.append(await backend.sandboxes.create(self.spec(template)))
                await backend.pauses.pause(chosen[-1].id, PauseOptions(keep_memory=keep_memory))
        for info in chosen:
            with pytest.raises(WrongState):
                await snapshots.fork(info.id, ForkOptions())
        with pytest.raises(NotFound):
            await snapshots.fork(SandboxId("neverexisted"), ForkOptions())
        assert len(await backend.sandboxes.list(SandboxFilter())) == len(chosen)

    async def test_a_fork_of_nothing_is_refused(self, snapshots: SnapshotControl, sandbox: SandboxInfo) -> None:
        for count in (0, -1):
            with pytest.raises(InvalidSpec):
                await snapshots.fork(sandbox.id, ForkOptions(count=count))

    async def test_forks_that_find_no_room_are_told_one_by_one(self, make_backend: MakeBackend) -> None:
        limits = Capacity(max_sandboxes=3, memory_floor_bytes=0, disk_floor_bytes=0)
        backend = await make_backend(Policies(capacity=limits))
        try:
            snapshots = self.snapshots_of(backend, await backend.capabilities())
            template = await backend.templates.prepare(self.template_spec)
            original = await backend.sandboxes.create(self.spec(template))
            answers = await snapshots.fork(original.id, ForkOptions(count=4))
            made = {answer.id for answer in answers if isinstance(answer, SandboxInfo)}
            assert [type(failure) for failure in failures(answers)] == [CapacityRejected] * 2
            assert len(made) == 2
            assert {info.id for info in await backend.sandboxes.list(SandboxFilter())} == {original.id, *made}
        finally:
            await backend.aclose(kill_all=True)

    async def test_a_fork_races_the_end_of_its_original(
        self, backend: SandboxBackend, snapshots: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        await said(processes, sandbox.id, "echo kept > /tmp/kept")
        forked, ended = await outcomes(
            snapshots.fork(sandbox.id, ForkOptions(count=2)),
            backend.sandboxes.delete(sandbox.id, DeleteOptions(force=True)),
        )
        assert ended is None
        made = [info for info in forked if isinstance(info, SandboxInfo)] if isinstance(forked, list) else []
        for info in made:
            assert await said(processes, info.id, "cat /tmp/kept") == "kept\n"
        assert sorted(await self.leftovers(backend)) == sorted(info.id for info in made)
