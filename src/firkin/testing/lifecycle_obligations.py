"""Obligations of a backend: templates, and the life of a sandbox from create to delete."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from firkin.law.backend import SandboxBackend
from firkin.law.errors import (
    FirkinError,
    InvalidReason,
    InvalidSpec,
    NotFound,
    ResourceKind,
    TemplatePrepareFailure,
    WrongState,
)
from firkin.law.ids import SandboxId, TemplateId
from firkin.law.processes import Command, Signal
from firkin.law.resources import MIB, SandboxResources
from firkin.law.sandboxes import (
    At,
    AttachOptions,
    DeleteOptions,
    ForceAfter,
    Graceful,
    Never,
    SandboxFilter,
    SandboxInfo,
    SandboxSpec,
    Timeout,
)
from firkin.law.states import SandboxState
from firkin.law.templates import NoPlane, TemplateInfo, TemplateSpec, TemplateState
from firkin.testing.backend_suite import BackendSuite

_UNKNOWN = SandboxId("neverexisted")


class TemplateObligations(BackendSuite):
    async def test_the_default_data_plane_prepares_and_is_ready(self, template: TemplateInfo) -> None:
        assert template.state is TemplateState.READY
        assert template.source == self.template_spec.source
        assert template.data_plane == self.template_spec.data_plane
        assert template.prepared_at is not None
        assert template.failure == ""

    async def test_the_same_spec_is_prepared_once(self, backend: SandboxBackend, template: TemplateInfo) -> None:
        again, once_more = await asyncio.gather(*(backend.templates.prepare(self.template_spec) for _ in range(2)))
        assert again == once_more == template
        assert [info.id for info in await backend.templates.list()] == [template.id]

    async def test_a_template_without_data_plane_is_another_one(self, backend: SandboxBackend) -> None:
        spec = TemplateSpec(source=self.template_spec.source, id=TemplateId("plain"), data_plane=NoPlane())
        info = await backend.templates.prepare(spec)
        assert (info.id, info.data_plane) == ("plain", NoPlane())
        assert await backend.templates.get(TemplateId("plain")) == info

    async def test_template_environment_reaches_programs(self, backend: SandboxBackend) -> None:
        spec = TemplateSpec(source=self.template_spec.source, id=TemplateId("withenv"), env={"FROM": "template"})
        info = await backend.templates.prepare(spec)
        sandbox = await backend.sandboxes.create(self.spec(info, env={"MORE": "sandbox"}))
        if backend.processes is None:
            pytest.skip("no processes here")
        output = await backend.processes.run(sandbox.id, Command.shell("echo $FROM $MORE"))
        assert output.stdout == b"template sandbox\n"

    async def test_a_missing_template_is_not_found(self, backend: SandboxBackend) -> None:
        missing = TemplateId("missing")
        for attempt in (backend.templates.get(missing), backend.templates.delete(missing)):
            with pytest.raises(NotFound) as caught:
                await attempt
            assert (caught.value.resource, caught.value.id) == (ResourceKind.TEMPLATE, "missing")
        with pytest.raises(NotFound) as caught:
            await backend.sandboxes.create(SandboxSpec.from_template("missing"))
        assert caught.value.resource is ResourceKind.TEMPLATE

    async def test_a_source_that_is_not_there_leaves_no_record(self, backend: SandboxBackend) -> None:
        with pytest.raises((TemplatePrepareFailure, InvalidSpec)):
            await backend.templates.prepare(TemplateSpec.local("/no/such/root", id=TemplateId("lost")))
        assert list(await backend.templates.list()) == []

    async def test_a_template_in_use_is_not_deleted(
        self, backend: SandboxBackend, template: TemplateInfo, sandbox: SandboxInfo
    ) -> None:
        with pytest.raises(WrongState):
            await backend.templates.delete(template.id)
        await backend.sandboxes.delete(sandbox.id, DeleteOptions(force=True))
        await backend.templates.delete(template.id)
        assert list(await backend.templates.list()) == []
        with pytest.raises(NotFound):
            await backend.templates.get(template.id)


class CreateObligations(BackendSuite):
    async def test_a_created_sandbox_runs_and_is_listed(self, backend: SandboxBackend, sandbox: SandboxInfo) -> None:
        assert sandbox.state is SandboxState.RUNNING
        assert sandbox.started_at is not None
        assert await backend.sandboxes.inspect(sandbox.id) == sandbox
        assert [info.id for info in await backend.sandboxes.list(SandboxFilter())] == [sandbox.id]

    async def test_what_was_asked_for_is_what_the_record_says(
        self, backend: SandboxBackend, template: TemplateInfo
    ) -> None:
        resources = SandboxResources(vcpus=1, memory_bytes=256 * MIB, disk_bytes=256 * MIB, pids=200)
        wish = self.spec(
            template,
            resources=resources,
            env={"A": "b"},
            metadata={"user": "ü 1"},
            labels={"note": "x"},
            owner="tenant",
        )
        info = await backend.sandboxes.create(wish)
        assert info.template_id == template.id
        assert (info.resources, info.env, info.metadata) == (resources, {"A": "b"}, {"user": "ü 1"})
        assert (info.labels, info.owner, info.deadline_at) == ({"note": "x"}, "tenant", None)
        assert await backend.sandboxes.inspect(info.id) == info

    async def test_deadlines_are_recorded_as_instants(self, backend: SandboxBackend, template: TemplateInfo) -> None:
        before = datetime.now(UTC)
        timed = await backend.sandboxes.create(self.spec(template, deadline=Timeout(100)))
        when = before + timedelta(hours=1)
        dated = await backend.sandboxes.create(self.spec(template, deadline=At(when)))
        never = await backend.sandboxes.create(self.spec(template, deadline=Never()))
        assert timed.deadline_at is not None
        assert 95 < (timed.deadline_at - before).total_seconds() < 130
        assert dated.deadline_at is not None
        assert abs((dated.deadline_at - when).total_seconds()) < 2
        assert never.deadline_at is None

    async def test_list_filters_by_state_metadata_owner_and_template(
        self, backend: SandboxBackend, template: TemplateInfo
    ) -> None:
        one = await backend.sandboxes.create(self.spec(template, metadata={"k": "1", "x": "y"}, owner="ann"))
        two = await backend.sandboxes.create(self.spec(template, metadata={"k": "2"}, owner="bob"))
        await backend.sandboxes.kill(two.id, Signal.KILL)

        async def ids(wanted: SandboxFilter) -> set[str]:
            return {info.id for info in await backend.sandboxes.list(wanted)}

        assert await ids(SandboxFilter()) == {one.id, two.id}
        assert await ids(SandboxFilter(states=frozenset({SandboxState.RUNNING}))) == {one.id}
        assert await ids(SandboxFilter(states=frozenset({SandboxState.STOPPED}))) == {two.id}
        assert await ids(SandboxFilter(metadata={"k": "1"})) == {one.id}
        assert await ids(SandboxFilter(owner="bob")) == {two.id}
        assert await ids(SandboxFilter(template_id=TemplateId("other"))) == set()

    async def test_list_is_newest_first(self, backend: SandboxBackend, template: TemplateInfo) -> None:
        made = [(await backend.sandboxes.create(self.spec(template))).id for _ in range(3)]
        assert [info.id for info in await backend.sandboxes.list(SandboxFilter())] == made[::-1]

    async def test_ids_are_never_used_again(self, backend: SandboxBackend, template: TemplateInfo) -> None:
        seen = set()
        for _ in range(5):
            info = await backend.sandboxes.create(self.spec(template))
            seen.add(info.id)
            await backend.sandboxes.delete(info.id, DeleteOptions(force=True))
        assert len(seen) == 5

    async def test_a_refused_create_leaves_nothing(self, backend: SandboxBackend, template: TemplateInfo) -> None:
        with pytest.raises(NotFound):
            await backend.sandboxes.create(SandboxSpec.from_template("missing"))
        with pytest.raises(InvalidSpec):
            await backend.sandboxes.create(self.spec(template, env={"A=B": "c"}))
        assert await self.leftovers(backend) == []

    async def test_a_cancelled_create_leaves_nothing(self, backend: SandboxBackend, template: TemplateInfo) -> None:
        for wait_s in (0.0, 0.001, 0.005):
            create = asyncio.get_running_loop().create_task(backend.sandboxes.create(self.spec(template)))
            await asyncio.sleep(wait_s)
            create.cancel()
            try:
                made = await create
            except asyncio.CancelledError:
                continue
            await backend.sandboxes.delete(made.id, DeleteOptions(force=True))
        assert await self.leftovers(backend) == []
        assert list(await backend.sandboxes.list(SandboxFilter())) == []

    async def test_attach_answers_for_a_running_sandbox(self, backend: SandboxBackend, sandbox: SandboxInfo) -> None:
        assert (await backend.sandboxes.attach(sandbox.id, AttachOptions(require_running=True))).id == sandbox.id
        await backend.sandboxes.stop(sandbox.id, Graceful(0.1))
        with pytest.raises(WrongState):
            await backend.sandboxes.attach(sandbox.id, AttachOptions(require_running=True))

    async def test_an_unknown_sandbox_is_not_found_by_any_verb(self, backend: SandboxBackend) -> None:
        verbs = (
            backend.sandboxes.attach(_UNKNOWN, AttachOptions()),
            backend.sandboxes.inspect(_UNKNOWN),
            backend.sandboxes.stop(_UNKNOWN, Graceful()),
            backend.sandboxes.kill(_UNKNOWN, Signal.KILL),
            backend.sandboxes.delete(_UNKNOWN, DeleteOptions(force=True)),
            backend.sandboxes.update_deadline(_UNKNOWN, Timeout(10)),
        )
        for verb in verbs:
            with pytest.raises(NotFound) as caught:
                await verb
            assert (caught.value.resource, caught.value.id) == (ResourceKind.SANDBOX, _UNKNOWN)


class EndObligations(BackendSuite):
    async def test_stop_then_delete(self, backend: SandboxBackend, sandbox: SandboxInfo) -> None:
        stopped = await backend.sandboxes.stop(sandbox.id, Graceful(1.0))
        assert stopped.state is SandboxState.STOPPED
        assert stopped.ended_at is not None
        assert (await backend.sandboxes.stop(sandbox.id, ForceAfter(0.1))).state is SandboxState.STOPPED
        await backend.sandboxes.delete(sandbox.id, DeleteOptions())
        assert await self.leftovers(backend) == []

    async def test_kill_then_delete(self, backend: SandboxBackend, sandbox: SandboxInfo) -> None:
        killed = await backend.sandboxes.kill(sandbox.id, Signal.KILL)
        assert killed.state is SandboxState.STOPPED
        assert (await backend.sandboxes.kill(sandbox.id, Signal.KILL)).state is SandboxState.STOPPED
        await backend.sandboxes.delete(sandbox.id, DeleteOptions())
        assert list(await backend.sandboxes.list(SandboxFilter())) == []

    async def test_a_softer_signal_ends_it_too(self, backend: SandboxBackend, sandbox: SandboxInfo) -> None:
        assert (await backend.sandboxes.kill(sandbox.id, Signal.TERM)).state is SandboxState.STOPPED

    async def test_a_running_sandbox_is_deleted_only_by_force(
        self, backend: SandboxBackend, sandbox: SandboxInfo
    ) -> None:
        with pytest.raises(WrongState) as caught:
            await backend.sandboxes.delete(sandbox.id, DeleteOptions())
        assert caught.value.state == SandboxState.RUNNING.value
        await backend.sandboxes.delete(sandbox.id, DeleteOptions(force=True))
        assert await self.leftovers(backend) == []

    async def test_a_deleted_sandbox_is_not_found_and_its_end_is_told(
        self, backend: SandboxBackend, sandbox: SandboxInfo
    ) -> None:
        await backend.sandboxes.delete(sandbox.id, DeleteOptions(force=True))
        with pytest.raises(NotFound) as caught:
            await backend.sandboxes.inspect(sandbox.id)
        assert "requested" in caught.value.detail
        with pytest.raises(NotFound):
            await backend.sandboxes.delete(sandbox.id, DeleteOptions(force=True))

    async def test_racing_ends_agree(self, backend: SandboxBackend, sandbox: SandboxInfo) -> None:
        answers = await asyncio.gather(
            *(backend.sandboxes.kill(sandbox.id, Signal.KILL) for _ in range(5)),
            *(backend.sandboxes.delete(sandbox.id, DeleteOptions(force=True)) for _ in range(3)),
            return_exceptions=True,
        )
        for answer in answers:
            assert not isinstance(answer, BaseException) or isinstance(answer, NotFound | WrongState), answer
        assert await self.leftovers(backend) == []

    async def test_requests_to_a_stopped_sandbox_fail_with_a_typed_error(
        self, backend: SandboxBackend, sandbox: SandboxInfo
    ) -> None:
        await backend.sandboxes.kill(sandbox.id, Signal.KILL)
        if backend.processes is not None:
            with pytest.raises(FirkinError):
                await backend.processes.list(sandbox.id)

    async def test_an_expired_sandbox_is_gone_by_its_deadline(
        self, backend: SandboxBackend, template: TemplateInfo
    ) -> None:
        info = await backend.sandboxes.create(self.spec(template, deadline=Timeout(0.2)))
        error = await self.gone(backend, info.id)
        assert "deadline" in error.detail
        assert await self.leftovers(backend) == []

    async def test_a_deadline_can_be_moved_both_ways(self, backend: SandboxBackend, template: TemplateInfo) -> None:
        info = await backend.sandboxes.create(self.spec(template, deadline=Timeout(0.5)))
        longer = await backend.sandboxes.update_deadline(info.id, Timeout(1000))
        assert longer.deadline_at is not None
        assert info.deadline_at is not None
        assert longer.deadline_at > info.deadline_at
        assert (await backend.sandboxes.update_deadline(info.id, Never())).deadline_at is None
        await backend.sandboxes.update_deadline(info.id, Timeout(0))
        assert "deadline" in (await self.gone(backend, info.id)).detail

    async def test_a_deadline_without_a_zone_or_below_zero_is_refused(self) -> None:
        for build in (lambda: At(datetime(2030, 1, 1)), lambda: Timeout(-1), lambda: Timeout(float("nan"))):
            with pytest.raises(InvalidSpec) as caught:
                build()
            assert caught.value.reason is InvalidReason.INVALID_TIMEOUT
