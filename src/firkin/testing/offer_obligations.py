"""Obligations of a backend: what it reports is what it does; the rest is refused by name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from firkin.law.backend import SandboxBackend
from firkin.law.capabilities import Capabilities, CapabilityName
from firkin.law.errors import NotFound, UnsupportedCapability, WrongState
from firkin.law.ids import SandboxId, SnapshotId, TemplateId
from firkin.law.isolation import STRENGTH
from firkin.law.processes import Shell, Signal
from firkin.law.sandboxes import FromSnapshot, Lifecycle, OnTimeout, SandboxInfo, SandboxSpec
from firkin.law.snapshots import (
    ForkOptions,
    PauseOptions,
    RestoreOptions,
    SnapshotArchive,
    SnapshotOptions,
)
from firkin.law.templates import EnvdPlane, GitSource, Provisioning, TemplateInfo, TemplateSpec
from firkin.law.volumes import VolumeMount
from firkin.testing.backend_suite import BackendSuite

_C = CapabilityName
_NOWHERE = SnapshotId("never-captured")

_ACCESSORS = {
    "processes": (_C.PROCESS_RUN, _C.PROCESS_START, _C.PROCESS_STREAM, _C.PROCESS_STDIN, _C.PROCESS_SIGNAL),
    "filesystems": (_C.FILESYSTEM_READ, _C.FILESYSTEM_WRITE, _C.FILESYSTEM_LIST, _C.FILESYSTEM_WATCH),
    "ports": (_C.PORTS_CONNECT, _C.PORTS_EXPOSE),
    "pauses": (_C.PAUSE_CAPTURE, _C.PAUSE_RESUME),
    "warm_pool": (_C.WARM_POOL_PREWARM, _C.WARM_POOL_CHECKOUT),
    "events": (_C.EVENTS_SUBSCRIBE,),
    "metrics": (_C.METRICS_HOST, _C.METRICS_GUEST),
}

_ALWAYS = (
    _C.RUNTIME_CREATE,
    _C.RUNTIME_ATTACH,
    _C.RUNTIME_LIST,
    _C.RUNTIME_DEADLINE,
    _C.SANDBOX_STOP,
    _C.SANDBOX_KILL,
    _C.SANDBOX_DELETE,
    _C.TEMPLATE_PREPARE,
    _C.TEMPLATE_DATA_PLANE_NONE,
    _C.TEMPLATE_DATA_PLANE_ENVD_INJECT,
)


async def refused(capability: CapabilityName, attempt: Awaitable[object]) -> None:
    """The attempt must end in `UnsupportedCapability` that names `capability` and says why."""
    with pytest.raises(UnsupportedCapability) as caught:
        await attempt
    assert caught.value.capability is capability
    assert str(caught.value.reason).strip()


async def _unread() -> AsyncIterator[bytes]:
    raise AssertionError("the archive was read although import is refused")
    yield b""


class OfferObligations(BackendSuite):
    async def test_preflight_is_ready_and_the_backend_names_itself(self, backend: SandboxBackend) -> None:
        assert (await backend.preflight()).ready
        info = await backend.info()
        assert info.name
        assert info.driver

    async def test_all_names_are_answered_and_refusals_have_reasons(self, capabilities: Capabilities) -> None:
        assert [name for name, _ in capabilities] == list(CapabilityName)
        for name, reason in capabilities:
            assert reason is None or str(reason).strip(), f"{name} is refused without a reason"

    async def test_the_least_that_makes_a_backend_is_offered(self, capabilities: Capabilities) -> None:
        for name in _ALWAYS:
            assert capabilities.supports(name), f"{name}: {capabilities.refusal(name)}"

    @pytest.mark.parametrize("accessor", sorted(_ACCESSORS))
    async def test_a_control_is_there_exactly_when_it_is_reported(
        self, backend: SandboxBackend, capabilities: Capabilities, accessor: str
    ) -> None:
        reported = any(capabilities.supports(name) for name in _ACCESSORS[accessor])
        assert (getattr(backend, accessor) is not None) == reported

    async def test_an_injected_data_plane_implies_its_initialisation(self, capabilities: Capabilities) -> None:
        """Without it no sandbox with that plane would ever be ready."""
        if capabilities.supports(_C.TEMPLATE_DATA_PLANE_ENVD_INJECT):
            assert capabilities.supports(_C.SANDBOX_DATA_PLANE_INIT)

    async def test_streams_imply_input_and_signals(self, capabilities: Capabilities) -> None:
        if capabilities.supports(_C.PROCESS_STREAM):
            assert capabilities.supports(_C.PROCESS_STDIN)
            assert capabilities.supports(_C.PROCESS_SIGNAL)


class SnapshotRefusalObligations(BackendSuite):
    async def test_what_is_not_offered_of_snapshots_is_refused_by_name(
        self, backend: SandboxBackend, capabilities: Capabilities, sandbox: SandboxInfo
    ) -> None:
        archive = SnapshotArchive(media_type="application/octet-stream", chunks=_unread())
        attempts: dict[CapabilityName, Callable[[], Awaitable[object]]] = {
            _C.SNAPSHOT_CAPTURE: lambda: backend.snapshots.capture(sandbox.id, SnapshotOptions()),
            _C.SNAPSHOT_RESTORE: lambda: backend.snapshots.restore(_NOWHERE, RestoreOptions()),
            _C.SNAPSHOT_DELETE: lambda: backend.snapshots.delete(_NOWHERE),
            _C.SNAPSHOT_EXPORT: lambda: backend.snapshots.export_archive(_NOWHERE),
            _C.SNAPSHOT_IMPORT: lambda: backend.snapshots.import_archive(_NOWHERE, archive),
        }
        for name, attempt in attempts.items():
            if not capabilities.supports(name):
                await refused(name, attempt())

    async def test_a_fork_needs_capture_and_restore(
        self, backend: SandboxBackend, capabilities: Capabilities, sandbox: SandboxInfo
    ) -> None:
        missing = [name for name in (_C.SNAPSHOT_CAPTURE, _C.SNAPSHOT_RESTORE) if not capabilities.supports(name)]
        if not missing:
            pytest.skip("forks are offered; their own obligations exercise them")
        await refused(missing[0], backend.snapshots.fork(sandbox.id, ForkOptions()))

    async def test_a_create_from_a_snapshot_needs_restore(
        self, backend: SandboxBackend, capabilities: Capabilities
    ) -> None:
        if capabilities.supports(_C.SNAPSHOT_RESTORE):
            pytest.skip("restore is offered; its own obligations exercise it")
        spec = SandboxSpec(source=FromSnapshot(_NOWHERE))
        await refused(_C.SNAPSHOT_RESTORE, backend.sandboxes.create(spec))


class PauseRefusalObligations(BackendSuite):
    async def test_what_is_not_offered_of_pauses_is_refused_by_name(
        self, backend: SandboxBackend, capabilities: Capabilities, sandbox: SandboxInfo
    ) -> None:
        if backend.pauses is None:
            assert not capabilities.supports(_C.PAUSE_CAPTURE)
            assert not capabilities.supports(_C.PAUSE_RESUME)
            return
        if not capabilities.supports(_C.PAUSE_CAPTURE):
            await refused(_C.PAUSE_CAPTURE, backend.pauses.pause(sandbox.id, PauseOptions()))
        if not capabilities.supports(_C.PAUSE_RESUME):
            await refused(_C.PAUSE_RESUME, backend.pauses.resume(sandbox.id))

    async def test_pausing_at_the_deadline_needs_pause(
        self, backend: SandboxBackend, capabilities: Capabilities, template: TemplateInfo
    ) -> None:
        if capabilities.supports(_C.PAUSE_CAPTURE):
            pytest.skip("pause is offered")
        spec = self.spec(template, lifecycle=Lifecycle(on_timeout=OnTimeout.PAUSE))
        await refused(_C.PAUSE_CAPTURE, backend.sandboxes.create(spec))


class RefusalObligations(BackendSuite):
    """Wishes that a backend may not know how to grant: granted truly, or refused; never dropped."""

    async def test_template_commands_run_or_are_refused(
        self, backend: SandboxBackend, capabilities: Capabilities
    ) -> None:
        if capabilities.supports(_C.TEMPLATE_READY):
            pytest.skip("template commands are offered")
        for fields in ({"setup": (Shell("true"),)}, {"start": Shell("true")}, {"ready": Shell("true")}):
            spec = TemplateSpec(source=self.template_spec.source, id=TemplateId("commands"), **fields)
            await refused(_C.TEMPLATE_READY, backend.templates.prepare(spec))

    async def test_an_image_with_its_own_data_plane_is_verified_or_refused(
        self, backend: SandboxBackend, capabilities: Capabilities
    ) -> None:
        if capabilities.supports(_C.TEMPLATE_DATA_PLANE_ENVD_VERIFY):
            pytest.skip("verification is offered")
        plane = EnvdPlane(provisioning=Provisioning.ALREADY_PRESENT)
        spec = TemplateSpec(source=self.template_spec.source, data_plane=plane)
        await refused(_C.TEMPLATE_DATA_PLANE_ENVD_VERIFY, backend.templates.prepare(spec))

    async def test_a_git_source_without_a_template_below_it_makes_nothing(self, backend: SandboxBackend) -> None:
        with pytest.raises((UnsupportedCapability, NotFound)):
            await backend.templates.prepare(TemplateSpec(source=GitSource("https://example.invalid/x")))
        assert list(await backend.templates.list()) == []

    async def test_volumes_are_refused_where_there_are_none(
        self, backend: SandboxBackend, template: TemplateInfo
    ) -> None:
        if backend.volumes is not None:
            pytest.skip("volumes are offered; their own obligations exercise them")
        volumes = self.spec(template, volumes=(VolumeMount(name="data", path="/data"),))
        await refused(_C.RUNTIME_CREATE, backend.sandboxes.create(volumes))
        assert await self.leftovers(backend) == []

    async def test_other_tiers_are_refused(self, backend: SandboxBackend, template: TemplateInfo) -> None:
        ready = {status.isolation for status in await backend.tiers() if status.preflight.ready}
        others = [tier for tier in STRENGTH if tier not in ready]
        for other in others:
            await refused(_C.RUNTIME_CREATE, backend.sandboxes.create(self.spec(template, isolation=other)))
        assert await self.leftovers(backend) == []

    async def test_the_default_tier_is_listed_first_and_offers_what_the_backend_does(
        self, backend: SandboxBackend, capabilities: Capabilities
    ) -> None:
        first, *others = await backend.tiers()
        assert first.is_default
        assert not any(status.is_default for status in others)
        assert dict(first.capabilities) == dict(capabilities)
        assert all(status.preflight.ready or status.preflight.reasons for status in others)

    async def test_a_sandbox_says_what_holds_it_in_while_it_lives(
        self, backend: SandboxBackend, sandbox: SandboxInfo
    ) -> None:
        report = await backend.sandboxes.isolation(sandbox.id)
        assert report.driver == sandbox.driver
        await backend.sandboxes.kill(sandbox.id, Signal.KILL)
        with pytest.raises(WrongState):
            await backend.sandboxes.isolation(sandbox.id)
        with pytest.raises(NotFound):
            await backend.sandboxes.isolation(SandboxId("nevermade"))
