"""What a `Runtime` offers beside sandboxes: one small client for each control of the backend."""

from __future__ import annotations

from collections.abc import Sequence

from firkin.law.backend import SandboxBackend, WarmPoolControl
from firkin.law.capabilities import CapabilityName
from firkin.law.events import EventFilter, EventStream
from firkin.law.ids import SandboxId, SnapshotId, TemplateId, WarmPoolKey
from firkin.law.logs import LogEntry, LogFilter, LogStream
from firkin.law.metrics import Metric, MetricFilter, SandboxUsage
from firkin.law.processes import Signal
from firkin.law.sandboxes import (
    AttachOptions,
    DeleteOptions,
    Graceful,
    KillSignal,
    SandboxDeadline,
    SandboxFilter,
    SandboxInfo,
    SandboxSpec,
    StopMode,
)
from firkin.law.snapshots import (
    RestoreOptions,
    SnapshotArchive,
    SnapshotFilter,
    SnapshotInfo,
    SnapshotOptions,
    SnapshotRef,
)
from firkin.law.templates import PreparedTemplate, TemplateInfo, TemplateSpec
from firkin.law.warm_pool import (
    WarmLease,
    WarmLeasePolicy,
    WarmMaintainReport,
    WarmPoolSpec,
    WarmPoolStatus,
    WarmPoolTarget,
)
from firkin.runtime.files import SandboxFiles
from firkin.runtime.processes import SandboxProcesses
from firkin.runtime.required import required
from firkin.runtime.sandbox import Sandbox

_C = CapabilityName


class TemplateClient:
    """Templates: prepare once, make many sandboxes from them."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend

    async def prepare(self, spec: TemplateSpec) -> PreparedTemplate:
        return await self._backend.templates.prepare(spec)

    async def get(self, template_id: str) -> TemplateInfo:
        return await self._backend.templates.get(TemplateId(template_id))

    async def list(self) -> Sequence[TemplateInfo]:
        return await self._backend.templates.list()

    async def delete(self, template_id: str) -> None:
        await self._backend.templates.delete(TemplateId(template_id))

    async def prune(self) -> int:
        """Remove at once the files that nothing needs any more. Returns how many layers those were."""
        return await self._backend.templates.prune()


class SandboxClient:
    """Sandboxes as live handles."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend

    async def create(self, spec: SandboxSpec | str) -> Sandbox:
        """A running sandbox. Text is the id of its template."""
        wanted = SandboxSpec.from_template(spec) if isinstance(spec, str) else spec
        return Sandbox(self._backend, await self._backend.sandboxes.create(wanted))

    async def restore(self, snapshot_id: str, options: RestoreOptions | None = None) -> Sandbox:
        info = await self._backend.snapshots.restore(SnapshotId(snapshot_id), options or RestoreOptions())
        return Sandbox(self._backend, info)

    async def attach(self, sandbox_id: str, *, require_running: bool = False) -> Sandbox:
        """The handle of a sandbox that exists, after its agent has answered if it runs."""
        options = AttachOptions(require_running=require_running)
        return Sandbox(self._backend, await self._backend.sandboxes.attach(SandboxId(sandbox_id), options))

    async def inspect(self, sandbox_id: str) -> SandboxInfo:
        return await self._backend.sandboxes.inspect(SandboxId(sandbox_id))

    async def list(self, filter: SandboxFilter | None = None) -> Sequence[SandboxInfo]:
        return await self._backend.sandboxes.list(filter or SandboxFilter())

    async def stop(self, sandbox_id: str, mode: StopMode | None = None) -> SandboxInfo:
        return await self._backend.sandboxes.stop(SandboxId(sandbox_id), mode or Graceful())

    async def kill(self, sandbox_id: str, signal: KillSignal = Signal.KILL) -> SandboxInfo:
        return await self._backend.sandboxes.kill(SandboxId(sandbox_id), signal)

    async def delete(self, sandbox_id: str, *, force: bool = False) -> None:
        await self._backend.sandboxes.delete(SandboxId(sandbox_id), DeleteOptions(force=force))

    async def update_deadline(self, sandbox_id: str, deadline: SandboxDeadline) -> SandboxInfo:
        return await self._backend.sandboxes.update_deadline(SandboxId(sandbox_id), deadline)


class ProcessClient:
    """Programs of any sandbox, by its id."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend

    def of(self, sandbox_id: str) -> SandboxProcesses:
        return SandboxProcesses(self._backend, SandboxId(sandbox_id))


class FileClient:
    """Files of any sandbox, by its id."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend

    def of(self, sandbox_id: str) -> SandboxFiles:
        return SandboxFiles(self._backend, SandboxId(sandbox_id))


class SnapshotClient:
    """Snapshots: kept pasts of sandboxes."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend

    async def capture(self, sandbox_id: str, options: SnapshotOptions | None = None) -> SnapshotRef:
        return await self._backend.snapshots.capture(SandboxId(sandbox_id), options or SnapshotOptions())

    async def restore(self, snapshot_id: str, options: RestoreOptions | None = None) -> Sandbox:
        return await SandboxClient(self._backend).restore(snapshot_id, options)

    async def get(self, snapshot_id: str) -> SnapshotInfo:
        return await self._backend.snapshots.get(SnapshotId(snapshot_id))

    async def list(self, filter: SnapshotFilter | None = None) -> Sequence[SnapshotInfo]:
        return await self._backend.snapshots.list(filter or SnapshotFilter())

    async def delete(self, snapshot_id: str) -> None:
        await self._backend.snapshots.delete(SnapshotId(snapshot_id))

    async def export_archive(self, snapshot_id: str) -> SnapshotArchive:
        return await self._backend.snapshots.export_archive(SnapshotId(snapshot_id))

    async def import_archive(self, snapshot_id: str, archive: SnapshotArchive) -> SnapshotRef:
        return await self._backend.snapshots.import_archive(SnapshotId(snapshot_id), archive)


class WarmPoolClient:
    """Sandboxes that are made before they are asked for."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend

    async def prewarm(self, template_id: str, spec: WarmPoolSpec) -> WarmMaintainReport:
        return await (await self._control("prewarm")).prewarm(TemplateId(template_id), spec)

    async def maintain(self, targets: Sequence[WarmPoolTarget]) -> WarmMaintainReport:
        return await (await self._control("maintain a warm pool")).maintain(targets)

    async def status(self) -> WarmPoolStatus:
        return await (await self._control("inspect a warm pool")).status()

    async def checkout(self, template_id: str, policy: WarmLeasePolicy = WarmLeasePolicy.CREATE_IF_EMPTY) -> WarmLease:
        control = await self._control("check out of a warm pool", _C.WARM_POOL_CHECKOUT)
        return await control.checkout(TemplateId(template_id), policy)

    async def evict(self, key: str, count: int) -> WarmMaintainReport:
        return await (await self._control("evict from a warm pool")).evict(WarmPoolKey(key), count)

    async def _control(self, operation: str, needed: CapabilityName = _C.WARM_POOL_PREWARM) -> WarmPoolControl:
        return await required(self._backend, self._backend.warm_pool, operation, needed)


class LogClient:
    """What the backend has to say about its sandboxes."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend

    async def list(self, filter: LogFilter | None = None) -> Sequence[LogEntry]:
        control = await required(self._backend, self._backend.logs, "read logs", _C.EVENTS_SUBSCRIBE)
        return await control.list(filter or LogFilter())

    async def stream(self, filter: LogFilter | None = None) -> LogStream:
        """Entries written from now on. Close it when leaving early."""
        control = await required(self._backend, self._backend.logs, "stream logs", _C.EVENTS_SUBSCRIBE)
        return await control.stream(filter or LogFilter())


class MetricClient:
    """Figures of the backend and of each sandbox."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend

    async def snapshot(self, filter: MetricFilter | None = None) -> Sequence[Metric]:
        control = await required(self._backend, self._backend.metrics, "read metrics", _C.METRICS_HOST)
        return await control.snapshot(filter or MetricFilter())

    async def usage(self, sandbox_id: str) -> SandboxUsage:
        control = await required(self._backend, self._backend.metrics, "measure a sandbox", _C.METRICS_GUEST)
        return await control.usage(SandboxId(sandbox_id))


class EventClient:
    """What happens, as it happens."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend

    async def subscribe(self, filter: EventFilter | None = None) -> EventStream:
        control = await required(self._backend, self._backend.events, "subscribe", _C.EVENTS_SUBSCRIBE)
        return await control.subscribe(filter or EventFilter())
