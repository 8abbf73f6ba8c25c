"""Obligations of a backend: snapshots are what they were captured from, whatever becomes of that."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from firkin.law.backend import ProcessControl, SandboxBackend, SnapshotControl
from firkin.law.capabilities import Capabilities, CapabilityName
from firkin.law.errors import (
    AlreadyExists,
    InvalidReason,
    InvalidSpec,
    NotFound,
    ResourceKind,
    SandboxUnavailable,
    UnsupportedCapability,
    WrongState,
)
from firkin.law.events import EventFilter, SnapshotChanged
from firkin.law.ids import SandboxId, SnapshotId
from firkin.law.processes import Command, Signal
from firkin.law.resources import MIB, SandboxResources
from firkin.law.sandboxes import DeleteOptions, FromSnapshot, Never, SandboxFilter, SandboxInfo, SandboxSpec, Timeout
from firkin.law.snapshots import (
    PauseOptions,
    RestoreOptions,
    SnapshotFilter,
    SnapshotKind,
    SnapshotOptions,
    SnapshotRef,
)
from firkin.law.states import SandboxState
from firkin.law.templates import TemplateInfo
from firkin.testing.backend_suite import (
    FREE,
    PATIENCE_S,
    BackendSuite,
    MakeBackend,
    failures,
    linear,
    outcomes,
    said,
)

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
IDENTITY = "hostname; cat /etc/machine-id"
_FOREVER = RestoreOptions(deadline=Never())
_NOWHERE = SnapshotId("never-captured")


class SnapshotSuite(BackendSuite):
    """`captures` is what the driver's snapshots hold: programs go on in copies of a continuation, and only there."""

    captures = SnapshotKind.FILESYSTEM

    @pytest.fixture
    def snapshots(self, backend: SandboxBackend, capabilities: Capabilities) -> SnapshotControl:
        return self.snapshots_of(backend, capabilities)

    def snapshots_of(self, backend: SandboxBackend, capabilities: Capabilities) -> SnapshotControl:
        for name in (CapabilityName.SNAPSHOT_CAPTURE, CapabilityName.SNAPSHOT_RESTORE, CapabilityName.SNAPSHOT_DELETE):
            if not capabilities.supports(name):
                pytest.skip(f"{name.value}: {capabilities.refusal(name)}")
        return backend.snapshots

    async def ids(self, snapshots: SnapshotControl, **fields: object) -> set[str]:
        return {info.id for info in await snapshots.list(SnapshotFilter(**fields))}  # type: ignore[arg-type]  # forwarded fields


class CaptureObligations(SnapshotSuite):
    async def test_a_snapshot_says_what_it_is(
        self, backend: SandboxBackend, snapshots: SnapshotControl, template: TemplateInfo
    ) -> None:
        sandbox = await backend.sandboxes.create(self.spec(template, env={"A": "b"}))
        before = datetime.now(UTC)
        options = SnapshotOptions(name="mine", metadata={"k": "v"}, owner="ann", labels={"note": "x"})
        ref = await snapshots.capture(sandbox.id, options)
        info = await snapshots.get(ref.id)
        assert (info.id, info.kind) == (ref.id, ref.kind) == (ref.id, self.captures)
        assert (info.name, info.metadata, info.owner, info.labels) == ("mine", {"k": "v"}, "ann", {"note": "x"})
        assert (info.source_sandbox_id, info.source_template_id) == (sandbox.id, template.id)
        assert (info.resources, info.env, info.driver) == (sandbox.resources, {"A": "b"}, sandbox.driver)
        assert before <= info.created_at <= datetime.now(UTC)
        assert info.integrity is not None
        assert len(bytes.fromhex(info.integrity.sha256)) == 32
        assert info.integrity.size_bytes > 0
        assert list(await snapshots.list(SnapshotFilter())) == [info]

    async def test_a_snapshot_is_of_the_kind_that_was_asked_for_or_is_refused(
        self, snapshots: SnapshotControl, sandbox: SandboxInfo
    ) -> None:
        ref = await snapshots.capture(sandbox.id, SnapshotOptions(kind=self.captures))
        assert ref.kind is self.captures
        for kind in set(SnapshotKind) - {self.captures}:
            with pytest.raises(UnsupportedCapability, match=f"of the kind '{self.captures}'"):
                await snapshots.capture(sandbox.id, SnapshotOptions(kind=kind, name="never"))
        assert await self.ids(snapshots) == {ref.id}

    async def test_a_captured_sandbox_runs_on(
        self, snapshots: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        boot_id = await said(processes, sandbox.id, BOOT_ID)
        started = await processes.start(sandbox.id, Command.argv("sleep", "1000"))
        await snapshots.capture(sandbox.id, SnapshotOptions())
        assert await said(processes, sandbox.id, BOOT_ID) == boot_id
        assert started.id in [process.id for process in await processes.list(sandbox.id)]

    async def test_a_paused_sandbox_is_captured_and_stays_paused(
        self, backend: SandboxBackend, snapshots: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        if backend.pauses is None:
            pytest.skip("no pauses here")
        await said(processes, sandbox.id, "echo kept > /tmp/kept")
        await backend.pauses.pause(sandbox.id, PauseOptions())
        ref = await snapshots.capture(sandbox.id, SnapshotOptions())
        assert (await backend.sandboxes.inspect(sandbox.id)).state is SandboxState.PAUSED
        twin = await snapshots.restore(ref.id, _FOREVER)
        assert await said(processes, twin.id, "cat /tmp/kept") == "kept\n"
        await backend.pauses.resume(sandbox.id)
        assert await said(processes, sandbox.id, "cat /tmp/kept") == "kept\n"

    async def test_what_has_no_files_at_hand_is_not_captured(
        self, backend: SandboxBackend, snapshots: SnapshotControl, template: TemplateInfo
    ) -> None:
        stopped = await backend.sandboxes.create(self.spec(template))
        await backend.sandboxes.kill(stopped.id, Signal.KILL)
        chosen = [stopped]
        if backend.pauses is not None:
            chosen.append(await backend.sandboxes.create(self.spec(template)))
            await backend.pauses.pause(chosen[-1].id, PauseOptions(keep_memory=False))
        for info in chosen:
            with pytest.raises(WrongState):
                await snapshots.capture(info.id, SnapshotOptions(name="never"))
        with pytest.raises(NotFound) as caught:
            await snapshots.capture(SandboxId("neverexisted"), SnapshotOptions())
        assert caught.value.resource is ResourceKind.SANDBOX
        assert await self.ids(snapshots) == set()

    async def test_a_name_is_taken_once_for_each_owner(self, snapshots: SnapshotControl, sandbox: SandboxInfo) -> None:
        first = await snapshots.capture(sandbox.id, SnapshotOptions(name="daily", owner="ann"))
        with pytest.raises(AlreadyExists) as caught:
            await snapshots.capture(sandbox.id, SnapshotOptions(name="daily", owner="ann"))
        assert (caught.value.resource, caught.value.id) == (ResourceKind.SNAPSHOT, "daily")
        other = await snapshots.capture(sandbox.id, SnapshotOptions(name="daily", owner="bob"))
        unnamed = [await snapshots.capture(sandbox.id, SnapshotOptions(owner="ann")) for _ in range(2)]
        assert await self.ids(snapshots) == {first.id, other.id, *(ref.id for ref in unnamed)}
        await snapshots.delete(first.id)
        await snapshots.capture(sandbox.id, SnapshotOptions(name="daily", owner="ann"))

    async def test_a_name_moves_to_what_replaces_it(
        self, snapshots: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        await said(processes, sandbox.id, "echo old > /tmp/file")
        old = await snapshots.capture(sandbox.id, SnapshotOptions(name="daily", replace=True))
        await said(processes, sandbox.id, "echo changed > /tmp/file")
        changed = await snapshots.capture(sandbox.id, SnapshotOptions(name="daily", replace=True))
        assert await self.ids(snapshots, name="daily") == {changed.id} != {old.id}
        with pytest.raises(NotFound):
            await snapshots.get(old.id)
        twin = await snapshots.restore(changed.id, _FOREVER)
        assert await said(processes, twin.id, "cat /tmp/file") == "changed\n"

    async def test_of_many_captures_under_one_name_one_stands(
        self, snapshots: SnapshotControl, sandbox: SandboxInfo
    ) -> None:
        options = SnapshotOptions(name="daily")
        answers = await outcomes(*(snapshots.capture(sandbox.id, options) for _ in range(4)))
        assert [type(failure) for failure in failures(answers)] == [AlreadyExists] * 3
        [winner] = [answer for answer in answers if isinstance(answer, SnapshotRef)]
        assert await self.ids(snapshots) == {winner.id}
        answers = await outcomes(
            *(snapshots.capture(sandbox.id, SnapshotOptions(name="daily", replace=True)) for _ in range(3))
        )
        assert {type(failure) for failure in failures(answers)} <= {AlreadyExists}
        assert len(await self.ids(snapshots)) == 1
        assert await self.ids(snapshots) != {winner.id}

    async def test_lists_are_filtered(
        self, backend: SandboxBackend, snapshots: SnapshotControl, template: TemplateInfo
    ) -> None:
        one, two = [await backend.sandboxes.create(self.spec(template)) for _ in range(2)]
        first = await snapshots.capture(one.id, SnapshotOptions(name="first", owner="ann", labels={"a": "1", "b": "2"}))
        second = await snapshots.capture(two.id, SnapshotOptions(name="second", owner="bob", labels={"a": "1"}))
        both = {first.id, second.id}
        assert await self.ids(snapshots) == await self.ids(snapshots, kind=self.captures) == both
        assert await self.ids(snapshots, kind=SnapshotKind.PAUSE) == set()
        assert await self.ids(snapshots, source_sandbox_id=one.id) == {first.id}
        assert await self.ids(snapshots, name="second") == {second.id}
        assert await self.ids(snapshots, owner="ann") == {first.id}
        assert await self.ids(snapshots, labels={"a": "1"}) == both
        assert await self.ids(snapshots, labels={"a": "1", "b": "2"}) == {first.id}
        assert await self.ids(snapshots, name="first", owner="bob") == set()

    async def test_a_deleted_snapshot_is_gone(self, snapshots: SnapshotControl, sandbox: SandboxInfo) -> None:
        ref = await snapshots.capture(sandbox.id, SnapshotOptions(name="gone"))
        await snapshots.delete(ref.id)
        for snapshot_id in (ref.id, _NOWHERE):
            attempts = (
                snapshots.delete(snapshot_id),
                snapshots.get(snapshot_id),
                snapshots.restore(snapshot_id, RestoreOptions()),
            )
            for attempt in attempts:
                with pytest.raises(NotFound) as caught:
                    await attempt
                assert (caught.value.resource, caught.value.id) == (ResourceKind.SNAPSHOT, snapshot_id)
        assert await self.ids(snapshots) == set()

    async def test_one_of_many_deletes_wins(self, snapshots: SnapshotControl, sandbox: SandboxInfo) -> None:
        ref = await snapshots.capture(sandbox.id, SnapshotOptions())
        answers = await outcomes(*(snapshots.delete(ref.id) for _ in range(4)))
        assert [type(failure) for failure in failures(answers)] == [NotFound] * 3

    async def test_captures_and_deletes_are_told(
        self, backend: SandboxBackend, snapshots: SnapshotControl, sandbox: SandboxInfo
    ) -> None:
        if backend.events is None:
            pytest.skip("no events here")
        stream = await backend.events.subscribe(EventFilter(sandbox_id=sandbox.id))
        ref = await snapshots.capture(sandbox.id, SnapshotOptions())
        await snapshots.delete(ref.id)
        told: list[SnapshotChanged] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(told) < 2:
                kind = (await anext(stream)).kind
                told += [kind] if isinstance(kind, SnapshotChanged) else []
        await stream.aclose()
        assert told == [SnapshotChanged(sandbox.id, ref.id)] * 2

    async def test_a_capture_races_a_kill(
        self, backend: SandboxBackend, snapshots: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        await said(processes, sandbox.id, "echo kept > /tmp/kept")
        captured, ended = await outcomes(
            snapshots.capture(sandbox.id, SnapshotOptions()),
            backend.sandboxes.delete(sandbox.id, DeleteOptions(force=True)),
        )
        assert ended is None
        if not isinstance(captured, SnapshotRef):
            assert isinstance(captured, WrongState | NotFound | SandboxUnavailable), captured
            assert await self.ids(snapshots) == set()
            return
        twin = await snapshots.restore(captured.id, _FOREVER)
        assert await said(processes, twin.id, "cat /tmp/kept") == "kept\n"

    async def test_snapshots_may_go_with_their_sandbox(
        self, backend: SandboxBackend, snapshots: SnapshotControl, template: TemplateInfo
    ) -> None:
        one, two, three = [await backend.sandboxes.create(self.spec(template)) for _ in range(3)]
        kept = [await snapshots.capture(info.id, SnapshotOptions()) for info in (two, three)]
        for _ in range(2):
            await snapshots.capture(one.id, SnapshotOptions())
        await backend.sandboxes.delete(one.id, DeleteOptions(force=True, delete_snapshots=True))
        await backend.sandboxes.delete(two.id, DeleteOptions(force=True))
        assert await self.ids(snapshots) == {ref.id for ref in kept}


class RestoreObligations(SnapshotSuite):
    async def test_a_restored_sandbox_has_the_files_and_only_a_continuation_the_processes(
        self, snapshots: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        await said(processes, sandbox.id, "mkdir -m 700 ~/box; echo kept > ~/box/kept; chmod 640 ~/box/kept")
        await processes.start(sandbox.id, Command.argv("sleep", "1000"))
        ref = await snapshots.capture(sandbox.id, SnapshotOptions())
        await said(processes, sandbox.id, "echo later > ~/box/kept")
        twin = await snapshots.restore(ref.id, _FOREVER)
        assert (twin.state, twin.snapshot_id, twin.template_id) == (SandboxState.RUNNING, ref.id, sandbox.template_id)
        assert twin.id != sandbox.id
        assert twin.resources == sandbox.resources
        assert (twin.default_user, twin.default_workdir) == (sandbox.default_user, sandbox.default_workdir)
        seen = "cat ~/box/kept; stat -c '%a %U' ~/box/kept"
        assert await said(processes, twin.id, seen) == f"kept\n640 {sandbox.default_user}\n"
        assert len(await processes.list(twin.id)) == (self.captures is SnapshotKind.CONTINUATION)

    async def test_its_identity_is_fresh(
        self, snapshots: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        ref = await snapshots.capture(sandbox.id, SnapshotOptions())
        twins = [await snapshots.restore(ref.id, _FOREVER) for _ in range(2)]
        machines = [sandbox, *twins]
        for text in ("hostname", "cat /etc/machine-id", BOOT_ID):
            answers = [await said(processes, info.id, text) for info in machines]
            assert len(set(answers)) == 3, (text, answers)
            assert all(answer.strip() for answer in answers)

    async def test_what_it_has_of_its_own_is_as_asked(
        self,
        backend: SandboxBackend,
        snapshots: SnapshotControl,
        processes: ProcessControl,
        template: TemplateInfo,
    ) -> None:
        sandbox = await backend.sandboxes.create(self.spec(template, env={"A": "old", "B": "kept"}))
        ref = await snapshots.capture(sandbox.id, SnapshotOptions(metadata={"k": "v"}))
        plain = await snapshots.restore(ref.id, _FOREVER)
        assert await said(processes, plain.id, "echo $A $B") == "old kept\n"
        assert plain.metadata == {"k": "v"}
        smaller = replace(sandbox.resources, vcpus=1, memory_bytes=128 * MIB, pids=100)
        own = smaller
        if self.captures is SnapshotKind.CONTINUATION:  # whose machine stays as it is
            with pytest.raises(InvalidSpec, match="keeps its"):
                await snapshots.restore(ref.id, RestoreOptions(resources=smaller))
            own = replace(sandbox.resources, pids=100)
        options = RestoreOptions(resources=own, env={"A": "own"}, deadline=Timeout(777), metadata={"mine": "yes"})
        info = await snapshots.restore(ref.id, options)
        assert (info.resources, info.metadata) == (own, {"mine": "yes"})
        assert await said(processes, info.id, "echo $A") == "own\n"
        assert info.deadline_at is not None
        assert 760 < (info.deadline_at - datetime.now(UTC)).total_seconds() <= 777

    async def test_a_restore_without_a_wish_has_the_default_deadline(
        self, snapshots: SnapshotControl, sandbox: SandboxInfo
    ) -> None:
        default_s = FREE.deadlines.default_timeout_s
        assert default_s is not None
        ref = await snapshots.capture(sandbox.id, SnapshotOptions())
        info = await snapshots.restore(ref.id, RestoreOptions())
        assert info.deadline_at is not None
        assert default_s - 20 < (info.deadline_at - datetime.now(UTC)).total_seconds() <= default_s

    async def test_a_disk_of_another_size_is_refused(
        self, backend: SandboxBackend, snapshots: SnapshotControl, sandbox: SandboxInfo
    ) -> None:
        ref = await snapshots.capture(sandbox.id, SnapshotOptions())
        wish = SandboxResources(disk_bytes=sandbox.resources.disk_bytes + 64 * MIB)
        with pytest.raises(InvalidSpec) as caught:
            await snapshots.restore(ref.id, RestoreOptions(resources=wish))
        assert caught.value.reason is InvalidReason.INVALID_RESOURCES
        assert [info.id for info in await backend.sandboxes.list(SandboxFilter())] == [sandbox.id]

    async def test_a_sandbox_is_created_from_a_snapshot(
        self, backend: SandboxBackend, snapshots: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        await said(processes, sandbox.id, "echo kept > /tmp/kept")
        ref = await snapshots.capture(sandbox.id, SnapshotOptions())
        spec = SandboxSpec(source=FromSnapshot(ref.id), deadline=Never(), owner="ann", labels={"note": "x"})
        made = await backend.sandboxes.create(spec)
        assert (made.snapshot_id, made.owner, made.labels) == (ref.id, "ann", {"note": "x"})
        assert await said(processes, made.id, "cat /tmp/kept") == "kept\n"
        with pytest.raises(NotFound) as caught:
            await backend.sandboxes.create(SandboxSpec(source=FromSnapshot(_NOWHERE)))
        assert caught.value.resource is ResourceKind.SNAPSHOT

    async def test_a_preserved_identity_is_taken_once_it_is_free(
        self, backend: SandboxBackend, snapshots: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        same = RestoreOptions(preserve_identity=True, deadline=Never())
        await said(processes, sandbox.id, "echo kept > /tmp/kept")
        ref = await snapshots.capture(sandbox.id, SnapshotOptions())
        for end in (None, backend.sandboxes.kill(sandbox.id, Signal.KILL)):
            if end is not None:
                await end
            with pytest.raises(AlreadyExists) as caught:
                await snapshots.restore(ref.id, same)
            assert (caught.value.resource, caught.value.id) == (ResourceKind.SANDBOX, sandbox.id)
        await backend.sandboxes.delete(sandbox.id, DeleteOptions())
        answers = await outcomes(*(snapshots.restore(ref.id, same) for _ in range(3)))
        assert [type(failure) for failure in failures(answers)] == [AlreadyExists] * 2
        assert await said(processes, sandbox.id, "cat /tmp/kept") == "kept\n"
        assert [info.id for info in await backend.sandboxes.list(SandboxFilter())] == [sandbox.id]

    async def test_a_snapshot_outlives_its_sandbox_and_its_template(
        self,
        backend: SandboxBackend,
        snapshots: SnapshotControl,
        processes: ProcessControl,
        template: TemplateInfo,
        sandbox: SandboxInfo,
    ) -> None:
        await said(processes, sandbox.id, "echo kept > /tmp/kept")
        ref = await snapshots.capture(sandbox.id, SnapshotOptions())
        before = await snapshots.get(ref.id)
        await backend.sandboxes.delete(sandbox.id, DeleteOptions(force=True))
        await backend.templates.delete(template.id)
        assert await snapshots.get(ref.id) == before
        twin = await snapshots.restore(ref.id, _FOREVER)
        assert await said(processes, twin.id, "cat /tmp/kept") == "kept\n"

    async def test_a_sandbox_outlives_the_snapshot_that_it_was_made_from(
        self, backend: SandboxBackend, snapshots: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        await said(processes, sandbox.id, "echo kept > /tmp/kept")
        ref = await snapshots.capture(sandbox.id, SnapshotOptions())
        twin = await snapshots.restore(ref.id, _FOREVER)
        await snapshots.delete(ref.id)
        await backend.sandboxes.delete(sandbox.id, DeleteOptions(force=True))
        assert await said(processes, twin.id, "cat /tmp/kept") == "kept\n"
        if backend.pauses is not None:
            await backend.pauses.pause(twin.id, PauseOptions(keep_memory=False))
            await backend.pauses.resume(twin.id)
            assert await said(processes, twin.id, "cat /tmp/kept") == "kept\n"
        again = await snapshots.capture(twin.id, SnapshotOptions())
        assert await said(processes, (await snapshots.restore(again.id, _FOREVER)).id, "cat /tmp/kept") == "kept\n"

    async def test_restores_at_once_are_apart(
        self, snapshots: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        await said(processes, sandbox.id, "echo same > /tmp/file")
        ref = await snapshots.capture(sandbox.id, SnapshotOptions())
        one, two, three = await asyncio.gather(*(snapshots.restore(ref.id, _FOREVER) for _ in range(3)))
        await said(processes, one.id, "echo other > /tmp/file")
        for info in (two, three, sandbox):
            assert await said(processes, info.id, "cat /tmp/file") == "same\n"

    async def test_a_restore_races_the_delete_of_its_snapshot(
        self, backend: SandboxBackend, snapshots: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        await said(processes, sandbox.id, "echo kept > /tmp/kept")
        ref = await snapshots.capture(sandbox.id, SnapshotOptions())
        *restored, deleted = await outcomes(
            *(snapshots.restore(ref.id, _FOREVER) for _ in range(2)), snapshots.delete(ref.id)
        )
        assert deleted is None
        for answer in restored:
            if isinstance(answer, SandboxInfo):
                assert await said(processes, answer.id, "cat /tmp/kept") == "kept\n"
            else:
                assert isinstance(answer, NotFound), answer
        assert await self.ids(snapshots) == set()

    async def test_a_cancelled_restore_leaves_nothing(
        self, backend: SandboxBackend, snapshots: SnapshotControl, sandbox: SandboxInfo
    ) -> None:
        ref = await snapshots.capture(sandbox.id, SnapshotOptions())
        for wait_s in (0.0, 0.001, 0.005):
            [answer] = await outcomes(asyncio.wait_for(snapshots.restore(ref.id, _FOREVER), wait_s))
            if isinstance(answer, SandboxInfo):
                await backend.sandboxes.delete(answer.id, DeleteOptions(force=True))
        assert await self.leftovers(backend) == [sandbox.id]
        assert [info.id for info in await backend.sandboxes.list(SandboxFilter())] == [sandbox.id]
        await snapshots.restore(ref.id, _FOREVER)

    async def test_snapshots_are_found_again_after_a_restart(self, make_backend: MakeBackend) -> None:
        first = await make_backend(FREE)
        capabilities = await first.capabilities()
        snapshots = self.snapshots_of(first, capabilities)
        template = await first.templates.prepare(self.template_spec)
        sandbox = await first.sandboxes.create(self.spec(template))
        assert first.processes is not None
        await said(first.processes, sandbox.id, "echo kept > /tmp/kept")
        ref = await snapshots.capture(sandbox.id, SnapshotOptions(name="kept", metadata={"k": "v"}, owner="ann"))
        before = await snapshots.get(ref.id)
        await first.sandboxes.delete(sandbox.id, DeleteOptions(force=True))
        await first.aclose(kill_all=True)
        second = await make_backend(FREE)
        try:
            snapshots = self.snapshots_of(second, capabilities)
            assert list(await snapshots.list(SnapshotFilter())) == [before]
            twin = await snapshots.restore(ref.id, _FOREVER)
            assert second.processes is not None
            assert await said(second.processes, twin.id, "cat /tmp/kept") == "kept\n"
            with pytest.raises(AlreadyExists):
                await snapshots.capture(twin.id, SnapshotOptions(name="kept", owner="ann"))
            await linear(second, twin.id)
            await snapshots.delete(ref.id)
        finally:
            await second.aclose(kill_all=True)
